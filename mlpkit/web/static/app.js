// The page of a service. It asks the routes of mlpkit and draws their answers. Text of users and authors reaches the
// document only as text nodes and checked attributes (`h`), never as HTML.

// ---- language

/** One text a line: key, English (left out: the key with a capital), Chinese. */
const TEXT = Object.fromEntries(`
overview||概览
jobs||任务
models||模型
workers||工作进程
tryit|Try it|试用
skip|Skip to the content|跳到内容
main||主菜单
toDark|Dark|深色
toLight|Light|浅色
other|中文|English
theme|Switch to dark or light colours|切换深色或浅色
lang|切换到中文|Switch to English
loading|Loading…|正在加载…
all||全部
close||关闭
cancelled|cancelled|已取消
back|All jobs|全部任务
copy||复制
copied||已复制
again|Try again|重试
none|none|无
unknown|not known|未知
of|{a} of {b}|{a} / {b}
forget|Forget the token|忘记令牌
docs|Routes|接口
missingPage|There is no such page|没有这个页面
toOverview|Back to the overview|返回概览
tokenTitle|This service needs a token|此服务需要令牌
tokenHelp|The value of MLPKIT_TOKEN. It stays in this tab until you close it.|即 MLPKIT_TOKEN 的值，仅保存在此标签页中，关闭后即删除。
token||令牌
tokenWrong|The service refused this token.|服务拒绝了此令牌。
enter|Continue|继续
gone|The service does not answer.|服务没有响应。
goneSince|This is of {time}. The page keeps trying.|以下内容截至 {time}。页面会继续重试。
starting|The service is starting.|服务正在启动。
draining|The service is stopping: running work ends first.|服务正在停止：先完成正在运行的工作。
notReady|The service takes no requests now.|服务目前不接受请求。
runs1|1 job is running|1 个任务正在运行
runsN|{n} jobs are running|{n} 个任务正在运行
waits1|1 is waiting|1 个在等待
waitsN|{n} are waiting|{n} 个在等待
onlyWaits1|1 job is waiting|1 个任务在等待
onlyWaitsN|{n} jobs are waiting|{n} 个任务在等待
noJobs|No job is running or waiting|没有正在运行或等待的任务
failed1|One failed {ago}: {why}|{ago}有 1 个失败：{why}
failedN|{n} failed in the last 24 hours, the latest {ago}: {why}|过去 24 小时有 {n} 个失败，最近一个在{ago}：{why}
missing1|1 model is missing.|缺少 1 个模型。
missingN|{n} models are missing.|缺少 {n} 个模型。
stop|.|。
comma|, |，
serves|{m} loaded in {w}.|{w}中已加载 {m}。
m0|No model is|0 个模型
m1|1 model is|1 个模型
mN|{n} models are|{n} 个模型
w1|1 worker|1 个工作进程
wN|{n} workers|{n} 个工作进程
phase||阶段
ready|ready|就绪
starts|starting|正在启动
drains|stopping|正在停止
notready|not ready|未就绪
version||版本
uptime|Up for|已运行
since|since {time}|自 {time}
store||存储
database||数据库
disk|Disk of the home|主目录磁盘
free|{n} free|剩余 {n}
cache|File cache|文件缓存
memory||内存
memServer|Memory of the server|服务器进程内存
machine|{n} free on the machine|机器剩余 {n}
failures|failures|失败
problem|Not ready|未就绪
warning||警告
service||服务
lastHour|The last hour|最近一小时
requests||请求
perSecond|{n}/s|{n}/秒
requestsKey|requests|请求
latency|Time of predictions|预测耗时
median|median|中位数
queue|Work|工作
predWait|predictions waiting|等待的预测
jobsRun|jobs running|运行的任务
jobsWait|jobs waiting|等待的任务
noSamples|The first figures come after 10 seconds.|10 秒后会有第一批数据。
minutesAgo|{n} min ago|{n} 分钟前
now|now|现在
chartOf|{title}: now {now}, at most {max}|{title}：当前 {now}，最高 {max}
train||训练
algorithm||算法
state||状态
submitted||提交时间
find||查找
findHint|a part of the model id|模型 id 的一部分
anyTime|any time|任何时间
hour|the last hour|最近一小时
day|the last 24 hours|最近 24 小时
week|the last 7 days|最近 7 天
init|waiting|等待中
training|running|运行中
completed|completed|已完成
error|failed|失败
job||任务
progress||进度
took|Time|用时
noJobsYet|No jobs yet|还没有任务
noMatch|Nothing fits the filters|没有符合条件的内容
clear|Clear the filters|清除筛选
page|{a}–{b} of {n}|第 {a}–{b} 个，共 {n} 个
newer||较新
older||较旧
previous||上一页
next||下一页
silent|no report for {time}|{time}没有报告
position|position {n}|排在第 {n} 位
estimate|starts in about {time}|约 {time}后开始
left|about {time} left|剩余约 {time}
cancel||取消任务
cancelAsk|Cancel this job?|取消这个任务？
cancelHelp|Its process is ended now, and what it has made is discarded.|其进程会立即结束，已产生的内容会被丢弃。
keep|Keep it|保留
cancelDone|The job is cancelled|任务已取消
endJob|Ask to end|请求结束
endAsk|Ask this job to end?|请求结束这个任务？
endHelp|It may first save a checkpoint or a model. If that takes too long, it is ended.|它可以先保存检查点或已有内容的模型；超时则被强制结束。
endDone|The job was asked to end|已请求任务结束
trainAgain|Train again|再次训练
showStack|Show stack|查看调用栈
stackTitle|Where the job is now|任务当前的位置
stackHelp|One block for each thread; the innermost call is first.|每个线程一段；最内层的调用在最前。
loadModel|Load|加载
lastReport|Last report|最近报告
reason||原因
facts||信息
attempt||尝试
started||开始
ended||结束
pid|Process|进程
uuid|Request id|请求 id
modelPath|Model path|模型路径
metrics||指标
asked|What it was asked|请求内容
data||数据
parameters||参数
extend||扩展
evaluation||评估
noResult|There is no result|没有结果
failedRows|{n} rows had no answer and count as wrong, first line {line}|{n} 行没有回答，计为错误，首个在第 {line} 行
inBoth|{n} sentences are in the training data too, so the figures are too good.|{n} 个句子也在训练数据中，因此数值偏高。
unknownLabels|No training row has these labels|训练数据中没有这些标签
rows||行数
source|Test rows from|测试数据
macro|Macro F1|宏平均 F1
micro|Micro F1|微平均 F1
accuracy||准确率
exact|Exact match|完全匹配
purity||纯度
rand|Adjusted Rand|调整兰德指数
perRow|Time per row|每行耗时
spans|Entities|实体
s_right|right|正确
s_missed|missed|漏检
s_invented|invented|误检
s_wrong_type|wrong type|类型错误
s_wrong_border|wrong border|边界错误
labels|Labels, worst first|标签，最差的在前
label||标签
precision||精确率
recall||召回率
support||样本数
confusions|Most frequent confusions|最常见的混淆
wanted||应为
got|Answered|回答为
count||次数
thresholds||阈值
atLeast|Score of at least|分数不低于
answered|Answers|回答数
right||正确率
errors|Most confident errors|置信度最高的错误
advice|These are often wrong labels in the test rows: look at them first.|这些错误往往是测试数据中的标签错误，请先检查。
line||行
sentence||句子
score||分数
log||日志
follow||跟随
noLog|The log is empty so far.|日志暂时为空。
jobGone|There is no such job|没有这个任务
location|Training data|训练数据
locationHelp|A path in the data bucket. A row: {columns}|数据桶中的路径。每行：{columns}
extendHelp|For the algorithm; a JSON object.|供算法使用的 JSON 对象。
pathHelp|Where the model is stored; empty for the usual place.|模型的存储位置；留空使用默认位置。
startTrain|Start training|开始训练
cannotTrain|No algorithm of this service can be trained|此服务没有可训练的算法
trainRefused|The training was refused|训练被拒绝
load|Load a model|加载模型
modelId|Model id|模型 id
loaded|loaded|已加载
loadingState|loading|正在加载
unloading|unloading|正在卸载
unloaded|not loaded|未加载
missing|missing|缺失
evicted|evicted|已换出
evictedWhy|Memory was short. A prediction loads it again.|因内存不足而卸载，预测时会重新加载。
lazily|loaded when asked|按需加载
unload||卸载
unloadAsk|Unload this model?|卸载这个模型？
unloadHelp|Predictions in flight end first. The stored model stays.|会先完成进行中的预测。存储的模型会保留。
unloadDone|The model is unloaded|模型已卸载
loadDone|The model is loaded|模型已加载
loadRefused|The model was not loaded|模型未加载
noModels|No model is loaded|没有已加载的模型
noModelsHelp|Load a model of a completed job, or one that is in the store.|可加载已完成任务的模型，或存储中的模型。
model||模型
rate|Predictions|预测
total|{n} in all|共 {n}
mean|Mean time|平均耗时
batch||批大小
waiting||等待
failuresN|Failures|失败
little|little|很少
actions||操作
stored|Stored models|存储的模型
aliases||别名
alias||别名
setAlias|Set an alias|设置别名
moveAlias|Move|移动
aliasDone|The alias leads to the model|别名已指向该模型
aliasRefused|The alias was not moved|别名未移动
created|Stored|存储时间
size||大小
more|Show more|显示更多
worker||工作进程
restarts||重启
since2|Since|自
isolated|one model|独占
down|down|未运行
heldN|{n} models|{n} 个模型
held1|1 model|1 个模型
features|Input|输入
params|Options|选项
send|Predict|预测
sending|Waiting for the answer…|正在等待回答…
answer||回答
request|The request|请求
noAnswer|The answer appears here|回答会显示在这里
refused|The prediction failed|预测失败
tookMs|{n} in all, network included|共 {n}，含网络
optional|optional|可选
perLine|one per line|每行一个
asJson|as JSON|JSON 格式
raw|As JSON|JSON 格式
noLabels|No label is above the threshold.|没有超过阈值的标签。
noEntities|No entity was found.|没有找到实体。
noRelations|No relation was found.|没有找到关系。
noClusters|No group was found.|没有找到分组。
threshold|threshold {n}|阈值 {n}
ofExample|Example {n}|示例 {n}
exampleLabel|Example|示例
nothingToTry|No model is loaded to try|没有可试用的模型
browseModels|Go to the models|前往模型
needed|This is needed.|必填。
notNumber|Not a number.|不是数字。
notWhole|Not a whole number.|不是整数。
notJson|Not valid JSON: {why}|不是有效的 JSON：{why}
wrongType|{what} is needed here.|这里需要{what}。
least|At least {n}.|至少 {n}。
most|At most {n}.|至多 {n}。
above|More than {n}.|须大于 {n}。
below|Less than {n}.|须小于 {n}。
shortest|At least {n} characters.|至少 {n} 个字符。
longest|At most {n} characters.|至多 {n} 个字符。
fewest|At least {n} items.|至少 {n} 项。
mostItems|At most {n} items.|至多 {n} 项。
oneOf|One of: {list}|可选值：{list}
lacks|The field “{name}” is missing.|缺少字段“{name}”。
t_object|An object|对象
t_array|A list|列表
t_string|Text|文本
t_number|A number|数字
t_integer|A whole number|整数
t_boolean|true or false|true 或 false
t_null|null|null
problemTitle|This did not work|操作未成功
`.trim().split("\n").map(line => line.split("|")).map(([key, english, chinese]) => [key, [english || key[0].toUpperCase() + key.slice(1), chinese]]))

const saved = name => { try { return localStorage.getItem(`mlpkit-${name}`) } catch { return null } }
const save = (name, value) => { try { localStorage.setItem(`mlpkit-${name}`, value) } catch { /* a private window */ } }
let language = saved("language") ?? (navigator.languages ?? [navigator.language]).map(tag => tag.slice(0, 2)).find(tag => tag === "zh" || tag === "en") ?? "en"

/** The text of a key in the present language, with `{name}` filled in. */
function t(key, values = {}) {
	const text = TEXT[key]?.[language === "zh" ? 1 : 0] ?? key
	return text.replace(/\{(\w+)\}/g, (all, name) => (name in values ? String(values[name]) : all))
}
const plural = (key, n) => t(`${key}${n === 1 ? "1" : "N"}`, {n: number(n)})

// ---- formatting

const locale = () => (language === "zh" ? "zh-CN" : "en-GB")
const number = (value, most = 0, least = 0) => new Intl.NumberFormat(locale(), {maximumFractionDigits: most, minimumFractionDigits: least}).format(value)
const share = value => number(value, 3, 3)
const significant = value => (value === 0 ? "0" : new Intl.NumberFormat(locale(), {maximumSignificantDigits: 4}).format(value))

function bytes(size) {
	if (size == null) return t("unknown")
	const units = ["B", "KiB", "MiB", "GiB", "TiB"]
	let power = 0
	while (size >= 1024 && power < units.length - 1) { size /= 1024; power += 1 }
	return `${number(size, size < 10 && power > 0 ? 1 : 0)} ${units[power]}`
}

/** Seconds as one or two units: 42 s, 3 min, 2 h 5 min, 3 d. */
function duration(seconds) {
	if (seconds == null || !Number.isFinite(seconds)) return "–"
	const s = Math.max(0, seconds)
	const words = language === "zh" ? ["秒", "分", "小时", "天"] : ["s", "min", "h", "d"]
	const gap = language === "zh" ? "" : " "
	if (s < 1) return `${number(s * 1000, s < 0.01 ? 1 : 0)} ms`
	if (s < 90) return `${number(s, s < 10 ? 1 : 0)} ${words[0]}`
	const minutes = Math.round(s / 60)
	if (minutes < 90) return `${minutes} ${words[1]}`
	const hours = Math.floor(minutes / 60)
	if (hours < 36) return `${hours} ${words[2]}${minutes % 60 ? `${gap}${minutes % 60} ${words[1]}` : ""}`
	return `${Math.floor(hours / 24)} ${words[3]}${hours % 24 ? `${gap}${hours % 24} ${words[2]}` : ""}`
}

/** Seconds between this machine's clock and the service's: all times are the service's. */
let clockOffset = 0
const nowSeconds = () => Date.now() / 1000 + clockOffset

function ago(time) {
	const passed = Math.max(0, nowSeconds() - time)
	const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([least]) => passed >= least) ?? [1, "second"]
	return new Intl.RelativeTimeFormat(locale(), {numeric: "auto"}).format(passed < 5 ? 0 : -Math.round(passed / size), unit)
}
const clock = time => new Date(time * 1000).toLocaleString(locale(), {dateStyle: "medium", timeStyle: "medium"})
const when = time => (time == null ? t("none") : h("time", {title: clock(time), datetime: new Date(time * 1000).toISOString()}, ago(time)))

const LONGEST = 20000
const ANSI = /(?:\u001b|\\x1b)\[[0-9;?]*[ -/]*[@-~]/g
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g
/** Text without what could hide or turn other text: terminal codes, control characters, direction marks; not too long. */
function clean(text, longest = LONGEST) {
	let shown = text.length > longest ? `${text.slice(0, longest)}… (+${number(text.length - longest)})` : text
	if (shown.includes("[")) shown = shown.replace(ANSI, "")
	return shown.replace(UNSEEN, mark => (mark === "\u200b" ? "" : `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`))
}
const firstLine = text => clean(text, 300).split("\n")[0]

// ---- document

const pairs = Object.entries
const SVG = "http://www.w3.org/2000/svg"
const SVG_TAGS = new Set(["svg", "path", "line"])

/** An element, as `div.class.class`. `props` may be left out: `on` has listeners, `style` CSS properties, `label` is `aria-label`, `key` names it
 * among its siblings, `keep` leaves it as it is. */
function h(name, ...children) {
	const [tag, ...classes] = name.split(".")
	const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag)
	if (classes.length) node.setAttribute("class", classes.join(" "))
	const props = children[0] == null || children[0].constructor === Object ? children.shift() : null
	for (const [name, value] of pairs(props ?? {})) {
		if (value == null || value === false) continue
		if (name === "on") listen(node, value)
		else if (name === "label") node.setAttribute("aria-label", clean(value))
		else if (name === "key" || name === "keep" || name === "value" || name === "checked" || name === "selected") node[name] = value
		else if (name === "style") for (const [property, text] of pairs(value)) node.style.setProperty(property, text)
		else node.setAttribute(name, value === true ? "" : clean(String(value)))
	}
	add(node, children)
	return node
}
function add(node, children) {
	for (const child of children) {
		if (child == null || child === false || child === "") continue
		if (Array.isArray(child)) add(node, child)
		else node.append(child instanceof Node ? child : document.createTextNode(clean(String(child))))
	}
}
function listen(node, listeners) {
	node.listeners ??= {}
	for (const [type, listener] of pairs(listeners)) {
		if (!(type in node.listeners)) node.addEventListener(type, event => node.listeners[type]?.(event))
		node.listeners[type] = listener
	}
}

/** Makes the children of an element like `fresh`, and keeps elements that stay: focus, selection and scrolling too. */
function draw(parent, fresh) {
	const nodes = fresh.flat(Infinity).filter(node => node != null && node !== false && node !== "").map(node => (node instanceof Node ? node : document.createTextNode(clean(String(node)))))
	const keyed = new Map([...parent.childNodes].filter(node => node.key != null).map(node => [node.key, node]))
	let place = parent.firstChild
	for (const node of nodes) {
		const old = node.key != null ? keyed.get(node.key) : place && place.key == null && place.nodeName === node.nodeName ? place : null
		if (old && old.nodeName === node.nodeName) {
			if (old === place) place = place.nextSibling
			else parent.insertBefore(old, place)
			if (old !== node) update(old, node)
		} else parent.insertBefore(node, place)
	}
	while (place) { const next = place.nextSibling; place.remove(); place = next }
}
function update(old, fresh) {
	if (old.nodeType === Node.TEXT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; return }
	if (old.keep) return
	for (const {name} of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name)
	for (const {name, value} of [...fresh.attributes]) if (old.getAttribute(name) !== value && name !== "style") old.setAttribute(name, value)
	if (fresh.style && old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText
	if (fresh.listeners) listen(old, fresh.listeners)
	draw(old, [...fresh.childNodes])
	if (old instanceof HTMLSelectElement && old !== document.activeElement && old.value !== fresh.value) old.value = fresh.value
}

const link = (href, props, ...children) => h("a", {href, ...props}, children)
const enc = encodeURIComponent
const pretty = value => JSON.stringify(value, null, 2)
const list = (key, label, ...children) => h("section.card.flush", {key, label: label}, children)
/** A table; `#` before a heading marks a column of numbers. */
const table = (heads, rows) => h("div.scroll", h("table.rows", h("thead", h("tr", heads.map(text => h(text.startsWith("#") ? "th.num" : "th", {scope: "col"}, text.replace("#", ""))))), h("tbody", rows)))
const cell = (name, value, more) => h("td.num", {"data-name": t(name)}, value, more && h("div.soft.small", more))
/** The buttons of a row; each says what it belongs to. */
const does = (key, name, click, kind) => button(t(key), click, {class: kind, label: `${t(key)}: ${name}`})
const acts = (...buttons) => h("td.full", h("div.actions", buttons))
const mono = text => user(text, {class: "user mono"})
const search = (...fields) => h("form.filters", {key: "filters", role: "search", on: {submit: event => event.preventDefault()}}, fields)
const PLAIN = {autocomplete: "off", spellcheck: "false"}
/** Shows why the service has refused something; other errors are this page's own. */
function refuse(place, key, error) {
	if (!(error instanceof Failure)) throw error
	draw(place, [h("div", {role: "alert"}, because("bad", key, error.message))])
}
const button = (text, click, props = {}) => h("button", {type: "button", key: text, on: {click}, ...props}, text)
const user = (text, props) => h("span.user", {...props}, text)
const badge = (kind, text) => h("span", {class: `badge ${kind}`}, text)
const note = (kind, ...content) => h("div", {class: `note ${kind}`}, h("div", content))
const because = (kind, key, text) => note(kind, h("strong", t(key)), ": ", user(text))
const empty = (title, help, ...more) => h("div.empty", h("strong", title), help && h("p", help), more)
const card = (title, props, ...children) => h("section.card", {...props}, title && h("h2", title), children)
const fact = (name, value, more, wide) => h("div", wide ? {class: "wide"} : null, h("dt", name), h("dd", value, more && h("small", more)))
const field = (text, input, props) => h("label", props, h("span", text), input)

let toastTimer = 0
function say(text) {
	draw(toast, [text])
	clearTimeout(toastTimer)
	toastTimer = setTimeout(() => draw(toast, []), 4000)
}
async function copy(text) {
	try { await navigator.clipboard.writeText(text) } catch {
		const area = h("textarea.hidden", {value: text})
		document.body.append(area); area.select(); document.execCommand("copy"); area.remove()
	}
	say(t("copied"))
}
const code = text => h("div.code", h("pre", {tabindex: "0"}, text), button(t("copy"), () => copy(text), {class: "mini"}))

/** Opens a dialog; gives it. `content` gets a function that closes it. */
function open(title, content, kind = "") {
	const id = `d${Date.now()}`
	const box = h("dialog", {class: kind, "aria-labelledby": id, on: {close: () => box.remove()}})
	add(box, [h("div.inside", h("h2", {id}, title), content(() => box.close()))])
	document.body.append(box)
	box.showModal()
	return box
}
function confirmed(title, help, yes, act) {
	open(title, close => [h("p.soft", help), h("div.actions", button(t("keep"), close, {autofocus: true}), button(yes, () => { close(); act() }, {class: "danger"}))])
}

// ---- calls

const ROOT = location.pathname.replace(/[^/]*$/, "")
const TOKEN = "mlpkit-token"
const token = () => sessionStorage.getItem(TOKEN) ?? ""

class Failure extends Error {
	constructor(message, {status = 0, word = "", name = ""} = {}) { super(message); this.status = status; this.word = word; this.kind = name }
	get unreachable() { return this.status === 0 }
}

async function ask(path, {method = "GET", body, headers = {}, limit = 30000, signal} = {}) {
	const all = {...headers}
	const used = token()
	if (used) all.Authorization = `Bearer ${used}`
	if (body !== undefined && !(body instanceof Blob)) { all["Content-Type"] = "application/json"; body = JSON.stringify(body) }
	let response
	try {
		response = await fetch(ROOT + path, {method, body, headers: all, cache: "no-store", credentials: "omit", signal: signal ?? AbortSignal.timeout(limit)})
	} catch (error) { throw new Failure(error.name === "TimeoutError" ? `${error.message}` : t("gone")) }
	if (response.status === 401) { if (used === token()) needToken(Boolean(used)); throw new Failure(t("tokenTitle"), {status: 401}) }
	if (response.headers.get("content-type")?.startsWith("application/json")) {
		const text = await response.text()
		let content
		try { content = JSON.parse(text) } catch { throw new Failure(`HTTP ${response.status}`, {status: response.status}) }
		if (content.status !== "success" && content.status !== "ok") {
			throw new Failure(content.message ?? `HTTP ${response.status}`, {status: response.status, word: content.status, name: response.headers.get("x-mlpkit-error") ?? ""})
		}
		return {data: content.data, response, text}
	}
	if (!response.ok) throw new Failure(`HTTP ${response.status}`, {status: response.status})
	return {response}
}
const get = async path => (await ask(path)).data
const post = async (path, body, options) => (await ask(path, {method: "POST", body, ...options})).data
const platform = route => (summary?.prefix ?? "/").slice(1) + route
const jobPath = (id, rest = "") => `jobs/${enc(id)}${rest}`
const query = values => { const text = new URLSearchParams(pairs(values).filter(([, value]) => value !== "" && value != null)).toString(); return text && `?${text}` }

let tokenBox = null
function needToken(wasWrong) {
	sessionStorage.removeItem(TOKEN)
	if (tokenBox) return
	const input = h("input", {type: "password", autocomplete: "off", required: true, id: "token", autofocus: true})
	const submit = event => {
		event.preventDefault()
		sessionStorage.setItem(TOKEN, input.value.trim())
		tokenBox.close()
		tokenBox = null
		refreshAll()
	}
	tokenBox = open(t("tokenTitle"), () => h("form", {on: {submit}}, wasWrong && note("bad", t("tokenWrong")), h("p.soft", t("tokenHelp")), field(t("token"), input), h("div.actions", h("button.main", t("enter")))))
	tokenBox.addEventListener("cancel", event => event.preventDefault())
}

// ---- frame

let summary = null
let unreachableSince = 0
let answeredAt = 0
let view = null
let algorithms = null

const top = h("header.top")
const main = h("main", {id: "content", tabindex: "-1"})
const foot = h("footer")
const toast = h("div.toast", {role: "status", "aria-live": "polite"})
const VIEWS = ["overview", "jobs", "models", "workers", "tryit"]

function setTheme(theme) {
	document.documentElement.dataset.theme = theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
}
setTheme(saved("theme"))
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!saved("theme")) setTheme(null) })

function drawFrame() {
	document.documentElement.lang = language === "zh" ? "zh-CN" : "en"
	const dark = document.documentElement.dataset.theme === "dark"
	const counts = summary && { jobs: summary.jobs.running + summary.jobs.waiting, models: summary.models.loaded, workers: summary.workers.all }
	const state = !summary || unreachableSince ? "calm" : !summary.ready ? "bad" : summary.warnings.length ? "warn" : ""
	draw(top, [h("div.bar",
		link("#/", {class: "brand"}, h("img", {src: `${ROOT}page/icon.svg`, alt: ""}), "mlpkit", h("span", {class: `dot ${state}`, title: summary ? t(phaseWord()) : ""})),
		h("nav", {label: t("main")}, h("ul", VIEWS.map(name => h("li", {key: name}, link(name === "overview" ? "#/" : `#/${name}`, {"aria-current": view?.tab === name ? "page" : null}, t(name), counts?.[name] ? h("span.count", number(counts[name])) : null))))),
		h("div.tools",
			button(t("other"), () => { language = language === "zh" ? "en" : "zh"; save("language", language); redrawAll() }, {class: "plain", label: t("lang"), lang: language === "zh" ? "en" : "zh"}),
			button(dark ? t("toLight") : t("toDark"), () => { const next = dark ? "light" : "dark"; save("theme", next); setTheme(next); redrawAll() }, {class: "plain", label: `${t("theme")}: ${dark ? t("toLight") : t("toDark")}`})))])
	draw(foot, [summary && h("span", `mlpkit ${summary.version}`), link(`${ROOT}docs`, null, t("docs")), link(`${ROOT}health/ready`, null, "health/ready"), token() && button(t("forget"), () => { sessionStorage.removeItem(TOKEN); needToken(false) }, {class: "plain mini"})])
	document.title = `${view?.title?.() ?? "mlpkit"} · mlpkit`
}
function phaseWord() { return {starting: "starts", draining: "drains"}[summary.phase] ?? (summary.ready ? "ready" : "notready") }

function drawMain() {
	if (!view) return
	const banner = unreachableSince > 0 && note("bad", h("strong", t("gone")), " ", answeredAt > 0 && t("goneSince", {time: new Date(answeredAt).toLocaleTimeString(locale())}))
	const content = view.failure ? [empty(view.failure.isGone ? t("jobGone") : view.failure.message, null, view.failure.isGone ? link("#/jobs", null, t("back")) : button(t("again"), refreshAll))] : view.ready ? view.render() : [h("p.soft", {"aria-busy": "true"}, unreachableSince ? "" : t("loading"))]
	draw(main, [banner && h("div", {key: "banner", role: "alert"}, banner), ...content.flat(Infinity).filter(Boolean)])
}
function redrawAll() { drawFrame(); drawMain() }

const ROUTES = [
	[/^\/?$/, overview], [/^\/jobs$/, jobsView], [/^\/jobs\/(.+)$/, jobView], [/^\/train$/, trainView], [/^\/models$/, modelsView], [/^\/workers$/, workersView], [/^\/tryit$/, tryView],
]
function route() {
	const [path, search = ""] = location.hash.slice(1).split("?")
	const values = Object.fromEntries(new URLSearchParams(search))
	view?.leave?.()
	view = null
	for (const [pattern, make] of ROUTES) {
		const match = pattern.exec(path)
		if (match) { let rest = match.slice(1); try { rest = rest.map(decodeURIComponent) } catch { /* shown as it is */ } view = make(...rest, values); break }
	}
	view ??= {tab: "", title: () => t("missingPage"), ready: true, load: async () => {}, render: () => [empty(t("missingPage"), null, link("#/", null, t("toOverview")))]}
	draw(main, [])
	drawFrame()
	drawMain()
	refresh()
}

let timer = 0
let asking = false
async function refresh() {
	clearTimeout(timer)
	const current = view
	if (document.hidden || tokenBox || !current) return
	if (asking) { timer = setTimeout(refresh, 100); return }
	asking = true
	try {
		const asked = get("summary").then(data => { summary = data; clockOffset = data.now - Date.now() / 1000 })
		await Promise.all([asked, current.load()])
		current.ready = true
		current.failure = null
		unreachableSince = 0
		answeredAt = Date.now()
	} catch (error) {
		if (error.unreachable) unreachableSince ||= Date.now()
		else if (error.status !== 401) { unreachableSince = 0; if (!current.ready || error.kind === "JobNotFound") { current.failure = error; error.isGone = error.kind === "JobNotFound" } }
		if (!(error instanceof Failure)) console.error(error)
	} finally { asking = false }
	if (view === current) redrawAll()
	timer = setTimeout(refresh, current.once ? 5000 : streaming ? 5000 : 2000)
}
function refreshAll() { if (view) view.failure = null; follow(); refresh() }

// Events tell when something has changed, so that the page asks at once; without them it asks every 2 seconds.
let streaming = null
let changed = 0
function tellChange() {
	if (changed) return
	changed = setTimeout(() => { changed = 0; refresh() }, 700)
}
async function follow() {
	streaming?.abort()
	streaming = null
	if (document.hidden) return
	const control = new AbortController()
	try {
		const {response} = await ask("events", {signal: control.signal, headers: {Accept: "text/event-stream"}})
		streaming = control
		const reader = response.body.getReader()
		for (;;) {
			const {done, value} = await reader.read()
			if (done) break
			if (value.length > 20) tellChange()
		}
	} catch (error) {
		if (control.signal.aborted || error.status === 401) return
	}
	if (streaming === control) streaming = null
	setTimeout(() => { if (!streaming) follow() }, 5000)
}

// ---- overview

/** What an operator needs to know, as one sentence or two. */
function sentence() {
	const {jobs, models, failed, phase, ready, workers} = summary
	const parts = []
	if (phase === "starting") parts.push(t("starting"))
	else if (phase === "draining") parts.push(t("draining"))
	else if (!ready) parts.push(t("notReady"))
	const work = jobs.running ? plural("runs", jobs.running) + (jobs.waiting ? t("comma") + plural("waits", jobs.waiting) : "") : jobs.waiting ? plural("onlyWaits", jobs.waiting) : t("noJobs")
	parts.push(work + t("stop"))
	if (failed.last) {
		const why = firstLine(failed.last.message) || t("unknown")
		const text = t(failed.count === 1 ? "failed1" : "failedN", {n: number(failed.count), ago: ago(failed.last.ended), why})
		parts.push(link(`#/jobs/${enc(failed.last.model_id)}`, {class: "user"}, /[.。!?！？]$/.test(text) ? text : text + t("stop")))
	}
	if (models.missing) parts.push(link("#/models", null, plural("missing", models.missing)))
	else if (!failed.last || models.loaded) parts.push(t("serves", {m: models.loaded ? plural("m", models.loaded) : t("m0"), w: plural("w", workers.all)}))
	return parts.flatMap((part, index) => (index && language !== "zh" ? [" ", part] : [part]))
}

function overview() {
	let charts = null
	return {
		tab: "overview",
		title: () => t("overview"),
		load: async () => { charts = await get("charts") },
		render: () => [
			h("div.lead", {key: "lead"}, h("h1", sentence())),
			(summary.reasons.length || summary.warnings.length) && h("ul.notes", {key: "notes"},
				summary.reasons.slice(0, 20).map(text => h("li", because("bad", "problem", text))),
				summary.warnings.slice(0, 20).map(text => h("li", because("warn", "warning", text)))),
			card(t("service"), {key: "service"}, h("dl.facts", serviceFacts())),
			h("section.stack", {key: "charts"}, h("h2", t("lastHour")), chartsOf(charts)),
		],
	}
}
function serviceFacts() {
	const {phase, disk, cache, memory, workers} = summary
	const word = phaseWord()
	return [
		fact(t("phase"), badge(word === "ready" ? "good" : word === "notready" ? "bad" : "busy", t(word))),
		fact(t("uptime"), duration(nowSeconds() - summary.started), t("since", {time: clock(summary.started)})),
		fact(t("version"), `mlpkit ${summary.version}`, `Python ${summary.python}`),
		fact(t("workers"), t("of", {a: number(workers.ready), b: number(workers.all)}), workers.restarts ? `${t("restarts")}: ${number(workers.restarts)}` : null),
		fact(t("memServer"), bytes(memory.server), t("machine", {n: bytes(memory.available)})),
		disk && fact(t("disk"), t("free", {n: bytes(disk.free)}), meter(1 - disk.free / disk.total)),
		fact(t("cache"), bytes(cache.used), t("of", {a: bytes(cache.used ?? 0), b: bytes(cache.limit)})),
		summary.database && fact(t("database"), user(summary.database)),
		fact(t("store"), mono(summary.store), null, true),
	]
}
function meter(share, kind) {
	const part = Math.min(1, Math.max(0, share))
	return h("span", {class: `meter ${kind ?? (part > 0.95 ? "bad" : part > 0.85 ? "warn" : "")}`, style: {display: "block", "margin-top": "0.4rem", "max-width": "9rem"}}, h("i", {style: {width: `${(part * 100).toFixed(1)}%`}}))
}
function chartsOf(charts) {
	if (!charts || charts.series.requests.length === 0) return card(null, {key: "none"}, empty(t("noSamples")))
	const {series, step, end} = charts
	const time = (index, count) => clock(end - (count - 1 - index) * step).split(" ").at(-1)
	const perSecond = value => t("perSecond", {n: number(value, 1)})
	const x = {axis: [t("minutesAgo", {n: Math.max(1, Math.round((series.requests.length * step) / 60))}), t("now")], at: time}
	return h("div.grid.broad",
		card(null, {key: "r"}, chart(t("requests"), [[t("requestsKey"), series.requests.map(n => n / step)], [t("failures"), series.failures.map(n => n / step)]], perSecond, x)),
		card(null, {key: "l"}, chart(t("latency"), [[t("median"), series.p50], ["99 %", series.p99]], duration, x)),
		card(null, {key: "w"}, chart(t("queue"), [[t("predWait"), series.waiting], [t("jobsRun"), series.jobs], [t("jobsWait"), series.queue]], number, x)),
		card(null, {key: "m"}, chart(t("memServer"), [[t("memory"), series.memory]], bytes, x)))
}

/** A line chart of one or several series of equal length, or of points with their own `xs`. */
function chart(title, series, format, {axis, at, xs = series.map(([, values]) => values.map((_, index) => index))}) {
	const numbers = series.flatMap(([, values]) => values).filter(value => value != null && Number.isFinite(value))
	const least = Math.min(0, ...numbers)
	const most = Math.max(...numbers, least)
	const high = most > least ? most : least + 1
	const first = Math.min(...xs.flat())
	const last = Math.max(...xs.flat(), first + 1e-9)
	const place = (number, index, value) => [(xs[number][index] - first) / (last - first) * 600, 100 - ((value - least) / (high - least)) * 96]
	const shown = (values, index) => (values[index] == null ? "–" : format(values[index]))
	const latest = values => { for (let index = values.length - 1; index >= 0; index -= 1) if (values[index] != null) return format(values[index]); return "–" }
	const lines = series.map(([, values], number) => {
		let text = ""
		let gap = true
		values.forEach((value, index) => {
			if (value == null) { gap = true; return }
			const [px, py] = place(number, index, value)
			text += `${gap ? "M" : "L"}${px.toFixed(1)} ${py.toFixed(1)}`
			if (gap && (index + 1 === values.length || values[index + 1] == null)) text += `h0.1`
			gap = false
		})
		return h("path", {class: `s${number}`, d: text})
	})
	const keys = h("span.keys")
	const cursor = h("line.cursor", {y1: 0, y2: 100, x1: 0, x2: 0, visibility: "hidden"})
	const showKeys = index => draw(keys, series.map(([name, values], number) => h("span", {key: number}, h("i", {class: `s${number}`}), `${series.length > 1 ? `${name} ` : ""}`, h("b", index == null ? latest(values) : shown(values, index)))).concat(index == null || !at ? [] : [h("span", {key: "at"}, at(index, xs[0].length))]))
	showKeys(null)
	const move = event => {
		const box = event.currentTarget.getBoundingClientRect()
		const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))
		const index = nearest(xs[0], first + share * (last - first))
		const [px] = place(0, index, 0)
		cursor.setAttribute("x1", px); cursor.setAttribute("x2", px); cursor.setAttribute("visibility", "visible")
		showKeys(index)
	}
	const leave = () => { cursor.setAttribute("visibility", "hidden"); showKeys(null) }
	const spoken = series.map(([name, values]) => t("chartOf", {title: series.length > 1 ? `${title}, ${name}` : title, now: latest(values), max: values.some(value => value != null) ? format(Math.max(...values.filter(value => value != null))) : "–"})).join(". ")
	return h("figure.chart", h("figcaption", h("b.user", title), keys),
		h("div.plot", h("svg", {viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img", label: spoken, on: {pointermove: move, pointerleave: leave}}, h("line", {x1: 0, x2: 600, y1: 4, y2: 4}), h("line", {x1: 0, x2: 600, y1: 52, y2: 52}), h("line", {x1: 0, x2: 600, y1: 100, y2: 100}), lines, cursor), numbers.length > 0 && h("span.max", format(high))),
		h("div.axis", {"aria-hidden": "true"}, h("span", axis[0]), h("span", axis[1])))
}
function nearest(values, wanted) {
	let best = 0
	values.forEach((value, index) => { if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index })
	return best
}

// ---- jobs

const STATES = {init: "calm", training: "busy", completed: "good", error: "bad"}
const SILENT = 60
const PAGE = 25
const stateBadge = job => (job.state === "error" && job.message === "cancelled" ? badge("calm", t("cancelled")) : badge(STATES[job.state] ?? "calm", t(job.state)))
const shortId = id => (id.length > 22 ? `${id.slice(0, 20)}…` : id)
const tookOf = job => (job.started == null ? null : (job.ended ?? nowSeconds()) - job.started)
const silence = job => (job.state === "training" && job.reported != null && nowSeconds() - job.reported > SILENT ? nowSeconds() - job.reported : null)
const silent = job => silence(job) != null && badge("warn", t("silent", {time: duration(silence(job))}))

function select(name, value, options, change) {
	const node = h("select", {name, on: {change: event => change(event.target.value)}}, options.map(([key, text]) => h("option", {value: key, key}, text)))
	for (const option of node.options) if (option.value === String(value ?? "")) option.selected = true
	return node
}
const algorithmOptions = () => [["", t("all")], ...(summary?.algorithms ?? []).map(({name}) => [name, name])]

function jobsView(values) {
	const filters = {algorithm: values.algorithm ?? "", state: values.state ?? "", time: values.time ?? "", find: values.find ?? ""}
	let start = Number(values.start) || 0
	let found = null
	let typing = 0
	const change = changes => {
		Object.assign(filters, changes)
		start = changes.start ?? 0
		delete filters.start
		history.replaceState(null, "", `#/jobs${query({...filters, start: start || ""})}`)
		refresh()
	}
	const isFiltered = () => Object.values(filters).some(Boolean)
	const load = async () => {
		const span = {hour: 3600, day: 86400, week: 604800}[filters.time]
		const {time, ...rest} = filters
		found = await get(`jobs${query({...rest, since: span ? (nowSeconds() - span).toFixed(3) : "", limit: PAGE, offset: start || ""})}`)
	}
	return {
		tab: "jobs",
		title: () => t("jobs"),
		load,
		render: () => [
			h("div.head", {key: "head"}, h("h1", t("jobs")), link("#/train", {class: "button main"}, t("train"))),
			search(field(t("algorithm"), select("algorithm", filters.algorithm, algorithmOptions(), algorithm => change({algorithm}))),
				field(t("state"), select("state", filters.state, [["", t("all")], ...Object.keys(STATES).map(state => [state, t(state)])], state => change({state}))),
				field(t("submitted"), select("time", filters.time, [["", t("anyTime")], ["hour", t("hour")], ["day", t("day")], ["week", t("week")]], time => change({time}))),
				field(t("find"), h("input", {type: "search", name: "find", value: filters.find, placeholder: t("findHint"), maxlength: 64, on: {input: event => { clearTimeout(typing); typing = setTimeout(() => change({find: event.target.value.trim()}), 250) }}}), {class: "grow"})),
			list("list", t("jobs"),
				found.jobs.length === 0
					? isFiltered() ? empty(t("noMatch"), null, button(t("clear"), () => { location.hash = "#/jobs" })) : empty(t("noJobsYet"))
					: [table([t("job"), t("state"), t("progress"), t("submitted"), `#${t("took")}`], found.jobs.map(jobRow)), pager(start, found.total, next => change({start: next}), true)]),
		],
	}
}
function pager(start, total, go, isTime) {
	if (total <= PAGE && start === 0) return null
	return h("div.pager", {key: "pager"}, h("span", t("page", {a: number(Math.min(start + 1, total)), b: number(Math.min(start + PAGE, total)), n: number(total)})), h("div.actions", button(t(isTime ? "newer" : "previous"), () => go(Math.max(0, start - PAGE)), {class: "mini", disabled: start === 0}), button(t(isTime ? "older" : "next"), () => go(start + PAGE), {class: "mini", disabled: start + PAGE >= total})))
}
function jobRow(job) {
	return h("tr", {key: job.model_id},
		h("td", link(`#/jobs/${enc(job.model_id)}`, {class: "mono user", title: job.model_id}, shortId(job.model_id)), h("div.soft.small", user(job.algorithm))),
		h("td", stateBadge(job)),
		h("td.full", rowProgress(job)),
		h("td.soft", when(job.created)),
		h("td.num.soft", tookOf(job) == null ? "" : duration(tookOf(job))))
}
function rowProgress(job) {
	if (job.state === "error") return h("div", {class: `why user ${job.message === "cancelled" ? "" : "bad"}`}, job.message === "cancelled" ? "" : firstLine(job.message ?? ""))
	if (job.state === "init") return h("span.soft", job.queue_position ? t("position", {n: number(job.queue_position)}) : "")
	if (job.state === "completed") return h("span.soft.small.num.user", pairs(job.progress?.metrics ?? {}).filter(([, value]) => typeof value === "number").slice(0, 2).map(([name, value]) => `${name} ${significant(value)}`).join(" · "))
	const {fraction = null, stage = ""} = job.progress ?? {}
	return h("div.progress", h("div.line.small", h("span", user(firstLine(stage)), silent(job) && [" ", silent(job)]), fraction != null && h("span.soft", `${Math.floor(fraction * 100)} %`)), bar(fraction, t("progress")))
}
function bar(fraction, label, kind = "") {
	return h("div", {class: `meter ${kind} ${fraction == null ? "open" : ""}`, role: "progressbar", label: label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": fraction == null ? null : Math.floor(fraction * 100)}, h("i", fraction == null ? null : {style: {width: `${(fraction * 100).toFixed(1)}%`}}))
}

// ---- one job

const MOST_LINES = 2000
const LONGEST_LINE = 2000
const LOG_LINE = /^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d)\S* (\w+) +\[[^\]]*\] ([^|]*)\| (.*)$/

/** The log of a job in an element that stays: lines are added at its end. */
function logBox(id) {
	const box = h("div.log", {role: "log", tabindex: "0", label: t("log"), keep: true, key: "log"}, h("div.soft", t("noLog")))
	let end = null
	let rest = ""
	let decoder = new TextDecoder()
	let isEmpty = true
	const follow = {on: true}
	async function load() {
		const {response} = await ask(jobPath(id, `/log${end == null ? "?tail=1000" : `?from=${end}`}`))
		const next = Number(response.headers.get("x-log-end"))
		const content = new Uint8Array(await response.arrayBuffer())
		if (end != null && next < end) { end = null; rest = ""; decoder = new TextDecoder(); isEmpty = true; draw(box, []); return }
		end = Number.isFinite(next) && response.headers.has("x-log-end") ? next : null
		if (content.length === 0) return
		if (isEmpty || end == null) box.replaceChildren()
		isEmpty = false
		const lines = (rest + decoder.decode(content, {stream: true})).split("\n")
		rest = lines.pop().slice(0, LONGEST_LINE)
		box.append(...lines.slice(-MOST_LINES).map(logLine))
		while (box.childElementCount > MOST_LINES) box.firstChild.remove()
		if (follow.on) box.scrollTop = box.scrollHeight
	}
	const settle = () => { if (follow.on) box.scrollTop = box.scrollHeight }
	return {box, load, follow, settle}
}
function logLine(line) {
	const cut = clean(line, LONGEST_LINE)
	const match = LOG_LINE.exec(cut)
	return match ? h("div", {class: match[2], title: match[3].trim()}, h("time", match[1]), match[4]) : h("div", cut)
}

function jobView(id) {
	let job = null
	let usual = null
	let report = null
	const log = logBox(id)
	const load = async () => {
		job = await get(jobPath(id))
		if (job.state === "init" && usual == null) {
			const {jobs} = await get("jobs?state=completed&limit=20")
			const times = jobs.map(tookOf).filter(time => time != null).sort((a, b) => a - b)
			usual = times[Math.floor(times.length / 2)] ?? null
		}
		if (job.ended && job.evaluation && !report) report = await get(jobPath(id, "/evaluation")).catch(error => { if (!error.status) throw error; return {error: error.message} })
		await log.load()
	}
	const cancel = soft => {
		const word = soft ? "end" : "cancel"
		confirmed(t(`${word}Ask`), t(`${word}Help`), t(soft ? "endJob" : "cancel"), () => attempt(async () => { await post("cancel", {model_id: id, soft}); say(t(`${word}Done`)); refresh() }))
	}
	const loadModel = () => attempt(async () => { await move("load", job); location.hash = "#/models" }, "loadRefused")
	return {
		tab: "jobs",
		title: () => shortId(id),
		load,
		render: () => {
			const isRunning = job.state === "training"
			requestAnimationFrame(log.settle)
			return [
				h("div.stack", {key: "head"}, link("#/jobs", {class: "back"}, `← ${t("back")}`),
					h("div.head", h("div", h("h1", user(job.algorithm), " ", stateBadge(job)), h("span.mono.soft.user", job.model_id)),
						h("div.actions", isRunning && button(t("showStack"), () => showStack(id)), isRunning && button(t("endJob"), () => cancel(true)), !job.ended && button(t("cancel"), () => cancel(false), {class: "danger"}), job.state === "completed" && button(t("loadModel"), loadModel), link(`#/train?from=${enc(id)}`, {class: "button", key: "again"}, t("trainAgain"))))),
				job.state === "error" && job.message !== "cancelled" && h("div", {key: "why"}, because("bad", "reason", job.message)),
				!job.ended && card(t("progress"), {key: "progress"}, progressOf(job, usual)),
				card(t("facts"), {key: "facts"}, h("dl.facts", jobFacts(job))),
				metricsCard(job),
				report && card(t("evaluation"), {key: "evaluation"}, evaluationOf(report)),
				h("section.card", {key: "logcard"}, h("div.title", h("h2", t("log")), h("label.check", h("input", {type: "checkbox", checked: log.follow.on, on: {change: event => { log.follow.on = event.target.checked; log.settle() }}}), h("span", t("follow")))), log.box),
				card(t("asked"), {key: "asked"}, h("div.stack", [["parameters", job.parameters], ["data", job.data], ["extend", job.extend]].map(([name, value]) => h("div", {key: name}, h("h3.label", t(name)), code(pretty(value)))))),
			]
		},
	}
}
function progressOf(job, usual) {
	if (job.state === "init") {
		const before = (job.queue_position ?? 1) - 1
		const wait = usual == null ? null : (Math.floor(before / summary.jobs.places) + 0.5) * usual
		return h("p", job.queue_position ? t("position", {n: number(job.queue_position)}) : t("init"), wait != null && h("span.soft", ` · ${t("estimate", {time: duration(wait)})}`))
	}
	const now = job.progress ?? {}
	const parts = now.bars?.length ? now.bars : [now]
	return h("div.stack",
		parts.map((part, index) => h("div.progress", {key: index},
			h("div.line", h("strong", user(firstLine(part.stage || t("training")))), h("span.soft", [part.done != null && part.total != null ? t("of", {a: number(part.done), b: number(part.total)}) : part.done != null ? number(part.done) : null, part.fraction != null ? `${Math.floor(part.fraction * 100)} %` : null, part.remaining >= 1 && silence(job) == null ? t("left", {time: duration(part.remaining)}) : null].filter(Boolean).join(" · "))),
			bar(part.fraction ?? null, part.stage || t("progress"), "big"))),
		h("div.progress.line", now.message && h("p", user(now.message)), h("p.soft.small", t("lastReport"), ": ", when(job.reported), silent(job) && [" ", silent(job)])))
}
function jobFacts(job) {
	return [
		fact(t("submitted"), when(job.created), clock(job.created)),
		job.started != null && fact(t("started"), when(job.started), clock(job.started)),
		job.ended != null && fact(t("ended"), when(job.ended), clock(job.ended)),
		tookOf(job) != null && fact(t("took"), duration(tookOf(job))),
		fact(t("attempt"), number(job.attempt)),
		job.pid != null && fact(t("pid"), `pid ${job.pid}`),
		job.memory != null && fact(t("memory"), bytes(job.memory)),
		job.model_path && fact(t("modelPath"), mono(job.model_path), null, true),
		fact(t("uuid"), mono(job.uuid), null, true),
	]
}
/** Charts of the metrics: those that differ only by train, val or test share one. */
function metricsCard(job) {
	const latest = job.progress?.metrics ?? {}
	const groups = new Map()
	for (const [name, points] of pairs(job.curves ?? {})) {
		if (points.length < 2) continue
		const group = name.replace(/^(train|training|val|valid|validation|test|eval)[_/ .-]/, "").slice(0, 60)
		if (!groups.has(group)) groups.set(group, [])
		if (groups.get(group).length < 4) groups.get(group).push([name, points])
	}
	const drawn = new Set([...groups.values()].flat().map(([name]) => name))
	const others = pairs(latest).filter(([name]) => name !== "evaluation" && !drawn.has(name))
	if (groups.size === 0 && others.length === 0) return null
	return card(t("metrics"), {key: "metrics"}, h("div.stack",
		groups.size > 0 && h("div.grid", [...groups].map(([name, series]) => {
			const xs = series.map(([, points]) => points.map(([second]) => second))
			return h("div", {key: name}, chart(name, series.map(([key, points]) => [key, points.map(([, value]) => value)]), significant, {xs, axis: [duration(xs[0][0]), duration(xs[0].at(-1))], at: index => duration(xs[0][index] ?? 0)}))
		})),
		others.length > 0 && h("dl.facts", others.slice(0, 60).map(([name, value]) => fact(user(name), user(typeof value === "number" ? significant(value) : firstLine(typeof value === "string" ? value : JSON.stringify(value))))))))
}
/** An evaluation: one line of figures, what to know about them, and tables of what is right and wrong. */
function evaluationOf(report) {
	const {failed, labels, spans, unknown_labels: unknown, average} = report
	const said = text => (text == null ? h("span.soft", t("none")) : user(clean(text, 200)))
	const figures = pairs({[average]: report.f1, accuracy: report.accuracy, exact: report.exact_match, chrF: report.chrf, purity: report.purity, rand: report.adjusted_rand}).filter(([, value]) => value != null)
	const worst = pairs(labels ?? {}).sort(([, a], [, b]) => a.f1 - b.f1 || b.support - a.support).slice(0, 100)
	const wrong = (report.errors ?? []).map(error => [String(error.line), user(error.sentence), said(error.wanted), said(error.got), error.score == null ? "–" : number(error.score, 1)])
	return h("div.stack",
		report.error && because("bad", "noResult", report.error),
		failed?.rows > 0 && note("warn", t("failedRows", {n: number(failed.rows), line: number(failed.line ?? 0)}), ": ", user(firstLine(failed.message))),
		report.in_both > 0 && note("warn", t("inBoth", {n: number(report.in_both)})),
		unknown && pairs(unknown).length > 0 && note("warn", t("unknownLabels"), ": ", user(firstLine(Object.keys(unknown).join(", ")))),
		report.rows != null && h("dl.facts", fact(t("rows"), number(report.rows)), report.source && fact(t("source"), mono(report.source)),
			figures.map(([name, value]) => fact(t(name), share(value))),
			report.milliseconds?.p50 != null && fact(t("perRow"), duration(report.milliseconds.p50 / 1000), report.milliseconds.p99 && `99 %: ${duration(report.milliseconds.p99 / 1000)}`),
			pairs(report.metrics ?? {}).map(([name, value]) => fact(user(name), user(typeof value === "number" ? significant(value) : JSON.stringify(value))))),
		spans && h("div", h("h3", t("spans")), h("dl.facts", pairs(spans).map(([name, count]) => fact(t(`s_${name}`), number(count))))),
		figureTable(t("labels"), [t("label"), `#${t("precision")}`, `#${t("recall")}`, "#F1", `#${t("support")}`], worst.map(([name, value]) => [user(name), share(value.precision), share(value.recall), share(value.f1), number(value.support ?? 0)])),
		h("div.grid.broad",
			figureTable(t("confusions"), [t("wanted"), t("got"), `#${t("count")}`], (report.confusions ?? []).map(({wanted, got, count}) => [said(wanted), said(got), number(count)])),
			figureTable(t("thresholds"), [t("atLeast"), `#${t("answered")}`, `#${t("right")}`], (report.thresholds ?? []).map(({threshold, answered, right}) => [number(threshold), number(answered), answered ? `${number(right / answered * 100, 1, 1)} %` : "–"]))),
		figureTable(t("errors"), [`#${t("line")}`, t("sentence"), t("wanted"), t("got"), `#${t("score")}`], wrong, h("p.soft", t("advice"))))
}
/** A table below a heading; none without rows. */
function figureTable(title, heads, rows, help) {
	return rows.length > 0 && h("div", h("h3", title), help, table(heads, rows.map(row => h("tr", row.map((content, index) => h(heads[index][0] === "#" ? "td.num" : "td", {"data-name": heads[index].replace("#", "")}, content))))))
}
async function showStack(id) {
	await attempt(async () => {
		const {response} = await ask(jobPath(id, "/stack"))
		const text = await response.text()
		open(t("stackTitle"), close => [h("p.soft", t("stackHelp")), code(text.trim()), h("div.actions", button(t("again"), () => { close(); showStack(id) }), button(t("close"), close, {class: "main", autofocus: true}))], "wide")
	})
}
/** Loads or unloads a model. */
async function move(route, {model_id, algorithm, model_path}) {
	await post(platform(route), {model_id, algorithm, model_path: model_path || undefined}, {limit: 600000})
	say(t(`${route}Done`))
	refresh()
}
/** Does something; a failure is shown in a dialog. */
async function attempt(act, title = "problemTitle") {
	try { await act() } catch (error) {
		if (!(error instanceof Failure)) throw error
		if (error.status !== 401) open(t(title), close => [note("bad", user(error.message)), h("div.actions", button(t("close"), close, {class: "main", autofocus: true}))])
	}
}

// ---- forms of schemas

async function describe() {
	algorithms ??= await get("algorithms")
	return algorithms
}
const described = name => algorithms.algorithms.find(algorithm => algorithm.name === name)

/** A schema without references and without the null of an optional field. */
function resolve(schema, depth = 0) {
	if (!schema || depth > 20) return {}
	if (schema.$ref) { const {$ref, ...own} = schema; return {...resolve(algorithms.schemas[$ref.split("/").pop()], depth + 1), ...own} }
	const choices = schema.anyOf ?? schema.oneOf
	if (choices) {
		const rest = choices.map(choice => resolve(choice, depth + 1)).filter(choice => choice.type !== "null")
		if (rest.length === 1) return {...rest[0], ...schema, anyOf: undefined, oneOf: undefined, nullable: rest.length < choices.length}
		return {...schema, anyOf: rest, oneOf: undefined}
	}
	return schema
}
const typeOf = value => (value === null ? "null" : Array.isArray(value) ? "array" : Number.isInteger(value) ? "integer" : typeof value)

/** What is wrong with a value, as a sentence, or "". */
function problemOf(raw, value, depth = 0) {
	const schema = resolve(raw)
	if (depth > 12) return ""
	if (schema.anyOf) { const found = schema.anyOf.map(choice => problemOf(choice, value, depth + 1)); return found.every(Boolean) ? found[0] : "" }
	if (value === null && schema.nullable) return ""
	if (schema.const !== undefined && value !== schema.const) return t("oneOf", {list: JSON.stringify(schema.const)})
	if (schema.enum && !schema.enum.includes(value)) return t("oneOf", {list: schema.enum.map(String).join(", ")})
	const type = typeOf(value)
	const wanted = schema.type == null ? [] : [schema.type].flat()
	if (wanted.length && !wanted.includes(type) && !(type === "integer" && wanted.includes("number"))) return t("wrongType", {what: t(`t_${wanted[0]}`)})
	const length = type === "string" ? [...value].length : value?.length
	const bounds = [["least", "minimum", value < schema.minimum], ["most", "maximum", value > schema.maximum], ["above", "exclusiveMinimum", value <= schema.exclusiveMinimum], ["below", "exclusiveMaximum", value >= schema.exclusiveMaximum], ["shortest", "minLength", length < schema.minLength], ["longest", "maxLength", length > schema.maxLength], ["fewest", "minItems", length < schema.minItems], ["mostItems", "maxItems", length > schema.maxItems]]
	for (const [key, bound, isBroken] of bounds) if (isBroken) return t(key, {n: schema[bound]})
	if (type === "array") {
		for (const item of schema.items ? value.slice(0, 1000) : []) { const wrong = problemOf(schema.items, item, depth + 1); if (wrong) return wrong }
	} else if (type === "object") {
		for (const name of schema.required ?? []) if (!(name in value)) return t("lacks", {name})
		for (const [name, inner] of pairs(schema.properties ?? {})) if (name in value) { const wrong = problemOf(inner, value[name], depth + 1); if (wrong) return `${name}: ${wrong}` }
	}
	return ""
}

let ids = 0
/** An input of one field. `read` gives its value, undefined for none, and shows what is wrong. */
function fieldOf(name, raw, start, isNeeded, change, isWhole = false) {
	const schema = resolve(raw)
	const id = `f${(ids += 1)}`
	const type = [schema.type ?? ""].flat().find(found => found !== "null") ?? ""
	const isLines = type === "array" && resolve(schema.items ?? {}).type === "string"
	const isPlain = ["string", "number", "integer", "boolean"].includes(type) || schema.enum || isLines
	const value = start ?? schema.default
	const props = {id, name, "aria-describedby": `${id}h ${id}w`, spellcheck: "false"}
	const on = {input: () => { read(); change() }}
	let input
	if (schema.enum) input = h("select", {...props, on: {change: on.input}}, [...(isNeeded ? [] : [h("option", {value: ""}, "–")]), ...schema.enum.map(choice => h("option", {value: JSON.stringify(choice), selected: choice === value}, String(choice)))])
	else if (type === "boolean") input = h("input", {type: "checkbox", ...props, checked: value === true, on: {change: on.input}})
	else if (type === "number" || type === "integer") input = h("input", {...props, inputmode: "decimal", autocomplete: "off", value: value == null ? "" : String(value), on})
	else if (isLines) input = h("textarea", {...props, rows: Math.min(8, Math.max(2, value?.length ?? 2)), on, value: (value ?? []).join("\n")})
	else if (type === "string") input = h("textarea", {...props, rows: (value ?? "").length > 60 ? 3 : 1, on, value: value ?? ""})
	else input = h("textarea.code", {...props, rows: value === undefined ? 2 : Math.min(10, pretty(value).split("\n").length + 1), on, value: value === undefined ? "" : pretty(value)})
	const wrong = h("p.wrong", {id: `${id}w`, "aria-live": "polite"})
	const parse = () => {
		if (schema.enum) return input.value === "" ? undefined : JSON.parse(input.value)
		if (type === "boolean") return input.checked
		const text = input.value
		if (type === "string") return text === "" && !isNeeded ? undefined : text
		if (isLines) { const lines = text.split("\n").filter(line => line.trim()); return lines.length === 0 && !isNeeded ? undefined : lines }
		if (text.trim() === "") { if (isNeeded) throw new Error(t("needed")); return undefined }
		if (type === "number" || type === "integer") {
			const found = Number(text)
			if (Number.isNaN(found)) throw new Error(t("notNumber"))
			if (type === "integer" && !Number.isInteger(found)) throw new Error(t("notWhole"))
			return found
		}
		try { return JSON.parse(text) } catch (error) { throw new Error(t("notJson", {why: error.message})) }
	}
	const read = () => {
		let problem = ""
		let found
		try { found = parse(); problem = found === undefined ? "" : problemOf(raw, found) } catch (error) { problem = error.message }
		draw(wrong, [problem])
		input.setAttribute("aria-invalid", String(Boolean(problem)))
		return {value: found, problem, input}
	}
	const help = [schema.description, isLines ? t("perLine") : !isPlain ? t("asJson") : ""].filter(Boolean).join(" · ")
	const label = [user(name), !isNeeded && h("em", ` ${t("optional")}`)]
	const node = type === "boolean"
		? h("div.field", h("label.check", {for: id}, input, h("span", label)), h("p.help.user", {id: `${id}h`}, help), wrong)
		: h("div.field", h("label", {for: id}, h(isWhole ? "span.hidden" : "span", label)), input, h("p.help.user", {id: `${id}h`}, help), wrong)
	return {name, node, read, small: type === "number" || type === "integer" || type === "boolean" || schema.enum}
}

/** A form of an object's schema. `read` gives the value and the first wrong input. */
function formOf(title, raw, start, change) {
	const schema = resolve(raw)
	const properties = pairs(schema.properties ?? {})
	const isWhole = properties.length === 0
	const fields = isWhole ? [fieldOf(title, {...schema, type: "object"}, start, true, change, true)] : properties.map(([name, inner]) => fieldOf(name, inner, start?.[name], (schema.required ?? []).includes(name), change))
	const small = fields.filter(made => made.small).map(made => made.node)
	const read = () => {
		const found = fields.map(made => made.read())
		const wrong = found.find(({problem}) => problem)?.input ?? null
		const value = isWhole ? found[0].value : Object.fromEntries(fields.map(({name}, index) => [name, found[index].value]).filter(([, item]) => item !== undefined))
		return {value, wrong}
	}
	return {node: h("fieldset.form", h("legend", title), fields.filter(made => !made.small).map(made => made.node), small.length > 0 && h("div.pair", small)), read}
}

function trainView(values) {
	let form = null
	let started = null
	let chosen = values.algorithm ?? ""
	const build = () => {
		const able = algorithms.algorithms.filter(algorithm => algorithm.hooks.includes("train"))
		if (able.length === 0) { form = empty(t("cannotTrain")); return }
		const algorithm = able.find(({name}) => name === chosen) ?? able[0]
		chosen = algorithm.name
		const from = started?.algorithm === chosen ? started : null
		const parameters = formOf(t("parameters"), algorithm.parameters, from?.parameters ?? {}, () => {})
		const location = h("input", {name: "location", ...PLAIN, value: from?.data?.location ?? values.data ?? ""})
		const path = h("input", {name: "model_path", ...PLAIN, value: from?.model_path ?? ""})
		const {remote_ip: _, ...beside} = from?.extend ?? {}
		const extend = fieldOf("extend", {type: "object", description: t("extendHelp")}, Object.keys(beside).length ? beside : undefined, false, () => {})
		const problem = h("div")
		const submit = async event => {
			event.preventDefault()
			const asked = parameters.read()
			const more = extend.read()
			const wrong = asked.wrong ?? (more.problem ? more.input : null)
			if (wrong) { wrong.focus(); return }
			const data = {...(from?.data ?? {})}
			if (location.value.trim()) data.location = location.value.trim(); else delete data.location
			try {
				const made = await post(platform("train"), {algorithm: chosen, model_path: path.value.trim(), data, parameter: asked.value ?? {}, extend: more.value ?? {}})
				window.location.hash = `#/jobs/${enc(made.model_id)}`
			} catch (error) {
				refuse(problem, "trainRefused", error)
				problem.scrollIntoView({block: "nearest"})
			}
		}
		form = h("form.card", {key: `form-${chosen}-${language}`, keep: true, on: {submit}}, h("div.form",
			field(t("algorithm"), select("algorithm", chosen, able.map(({name}) => [name, name]), name => { chosen = name; build(); drawMain() })),
			algorithm.takes_data && h("div.field", field(t("location"), location), h("p.help", t("locationHelp", {columns: algorithm.columns}))),
			parameters.node,
			h("details", h("summary", t("extend"), ", ", t("modelPath")), h("div.form", extend.node, h("div.field", field(t("modelPath"), path), h("p.help", t("pathHelp"))))),
			problem, h("div.actions", h("button.main", t("startTrain")))))
	}
	let built = ""
	return {
		tab: "jobs",
		once: true,
		title: () => t("train"),
		load: async () => {
			if (form) return
			await describe()
			if (values.from) { started = await get(jobPath(values.from)); chosen = started.algorithm }
		},
		render: () => {
			if (built !== language) { built = language; build() }
			return [h("div.stack", {key: "head"}, link("#/jobs", {class: "back"}, `← ${t("back")}`), h("h1", t("train"))), form]
		},
	}
}

// ---- models

const MODEL_STATES = {loaded: "good", loading: "busy", unloading: "busy", unloaded: "calm", evicted: "calm"}

function modelsView(values) {
	let models = []
	let aliases = []
	let stored = []
	let next = null
	let storeProblem = ""
	let rates = new Map()
	let before = null
	let find = values.find ?? ""
	let start = 0
	const load = async () => {
		const data = await get("models")
		const time = performance.now() / 1000
		models = [...data.models, ...(data.missing ?? []).map(model => ({...model, state: "missing", problem: model.reason})), ...(data.evicted ?? []).map(model => ({...model, state: "evicted"}))]
		models = models.map(model => (model.state === "unloaded" && model.desired === "loaded" ? {...model, state: "missing", problem: model.error || model.problem} : model))
		if (before && time - before.time > 0.5) rates = new Map(models.map(model => [model.model_id, Math.max(0, (model.predictions ?? 0) - (before.counts.get(model.model_id) ?? model.predictions ?? 0)) / (time - before.time)]))
		if (!before || time - before.time > 0.5) before = {time, counts: new Map(models.map(model => [model.model_id, model.predictions ?? 0]))};
		({aliases} = await get("aliases"))
	}
	const more = async () => {
		try {
			const found = await get(`models${query({stored: 1, limit: PAGE, after: next})}`)
			stored.push(...found.models);
			({next} = found)
			storeProblem = ""
		} catch (error) { if (!(error instanceof Failure)) throw error; storeProblem = error.message }
		drawMain()
	}
	more()
	const unload = model => confirmed(t("unloadAsk"), t("unloadHelp"), t("unload"), () => attempt(() => move("unload", model)))
	const again = model => attempt(() => move("load", model), "loadRefused")
	return {
		tab: "models",
		title: () => t("models"),
		load,
		render: () => {
			const order = {missing: 0, loading: 1, unloading: 1, evicted: 3}
			const listed = models.filter(model => !find || `${model.model_id} ${model.algorithm}`.toLowerCase().includes(find.toLowerCase())).sort((a, b) => (order[a.state] ?? (a.problem ? 0 : 2)) - (order[b.state] ?? (b.problem ? 0 : 2)))
			const shown = listed.slice(start, start + PAGE)
			const states = new Map(models.map(model => [model.model_id, model.state]))
			return [
				h("div.head", {key: "head"}, h("h1", t("models")), h("div.actions", models.length + stored.length > 0 && button(t("setAlias"), () => aliasDialog()), button(t("load"), loadDialog, {class: "main"}))),
				models.length > 8 && search(field(t("find"), h("input", {type: "search", value: find, placeholder: t("findHint"), on: {input: event => { find = event.target.value.trim(); start = 0; drawMain() }}}), {class: "grow"})),
				list("list", t("models"), models.length === 0 ? empty(t("noModels"), t("noModelsHelp"), link("#/jobs?state=completed", {class: "button"}, t("jobs"))) : listed.length === 0 ? empty(t("noMatch")) : [
					table([t("model"), t("state"), ...["rate", "mean", "batch", "waiting", "failuresN", "memory", "actions"].map(name => `#${t(name)}`)], shown.map(model => modelRow(model, rates.get(model.model_id), {unload, again}))),
					pager(start, listed.length, next => { start = next; drawMain() })]),
				aliases.length > 0 && list("aliases", t("aliases"), h("h2", t("aliases")), table([t("alias"), t("model"), t("state"), t("since2"), `#${t("actions")}`], aliases.map(alias => h("tr", {key: alias.name}, h("td", mono(alias.name)), h("td.full", mono(alias.model_id)), h("td", modelBadge(alias.state)), h("td.soft", when(alias.since)), acts(does("moveAlias", alias.name, () => aliasDialog(alias))))))),
				storeProblem && h("div", {key: "problem"}, because("warn", "stored", storeProblem)),
				stored.length > 0 && list("stored", t("stored"), h("h2", t("stored")), table([t("model"), t("state"), t("created"), `#${t("size")}`, `#${t("macro")}`, `#${t("actions")}`], stored.map(model => storedRow(model, states.get(model.model_id), again))), next && h("div.pager", {key: "more"}, button(t("more"), more, {class: "mini"}))),
			]
		},
	}
}
const modelBadge = state => badge(state === "missing" ? "bad" : MODEL_STATES[state] ?? "calm", t(state === "loading" ? "loadingState" : state))
function storedRow(model, state = "unloaded", again) {
	const {macro_f1: f1, error} = model.evaluation ?? {}
	return h("tr", {key: model.model_id},
		h("td", mono(model.model_id), h("div.soft.small", user(model.algorithm), model.aliases.map(alias => [" · ", mono(alias)]))),
		h("td", modelBadge(state), model.below_gate && h("div.why.bad.user", firstLine(model.below_gate))),
		h("td.soft", {"data-name": t("created")}, when(model.created)),
		cell("size", bytes(model.size)),
		cell("macro", f1 != null ? share(f1) : error ? t("noResult") : "–"),
		acts(state === "unloaded" && does("loadModel", model.model_id, () => again(model))))
}
function modelRow(model, rate, {unload, again}) {
	const isLoaded = model.state === "loaded"
	const done = model.predictions ?? 0
	return h("tr", {key: model.model_id},
		h("td", h("span.mono.user", {title: model.model_id}, shortId(model.model_id)), h("div.soft.small", user(model.algorithm), model.workers?.length ? ` · ${t("workers")} ${model.workers.join(", ")}` : "", isLoaded && model.lazy ? ` · ${t("lazily")}` : "")),
		h("td", isLoaded && model.problem ? badge("warn", t("loaded")) : modelBadge(model.state), model.state === "evicted" && h("div.soft.small", t("evictedWhy")), model.problem && h("div.why.bad.user", firstLine(model.problem))),
		cell("rate", t("perSecond", {n: number(rate ?? 0, 1)}), t("total", {n: number(done)})), cell("mean", done && model.seconds ? duration(model.seconds / done) : "–"),
		cell("batch", model.batches ? number(done / model.batches, 1) : "–"), cell("waiting", number((model.waiting ?? 0) + (model.in_flight ?? 0))), cell("failuresN", number(model.failures ?? 0)), cell("memory", model.memory ? bytes(model.memory) : isLoaded ? t("little") : "–"),
		acts(isLoaded && link(`#/tryit?model=${enc(model.model_id)}`, {class: "button", label: `${t("tryit")}: ${model.model_id}`}, t("tryit")), isLoaded && does("unload", model.model_id, () => unload(model), "danger"), ["missing", "evicted"].includes(model.state) && does("loadModel", model.model_id, () => again(model))))
}
/** A dialog with a form. A refusal of `act` is shown in it, and it stays open. */
function formDialog(title, yes, refused, act, ...fields) {
	const problem = h("div")
	open(title, close => {
		const send = h("button.main", yes)
		const submit = async event => {
			event.preventDefault()
			send.disabled = true
			try {
				await act()
				close()
			} catch (error) {
				refuse(problem, refused, error)
			} finally { send.disabled = false }
		}
		return h("form", {on: {submit}}, fields, problem, h("div.actions", button(t("close"), close), send))
	})
}
function choice(algorithm) {
	const chosen = {name: algorithm ?? summary.algorithms[0]?.name ?? ""}
	return [chosen, field(t("algorithm"), select("algorithm", chosen.name, summary.algorithms.map(({name}) => [name, name]), name => { chosen.name = name }))]
}
const entry = (name, longest, props) => h("input", {name, maxlength: longest, ...PLAIN, ...props})
function loadDialog() {
	const [algorithm, picker] = choice()
	const id = entry("model_id", 64, {required: true, autofocus: true})
	const path = entry("model_path", 1024)
	formDialog(t("load"), t("loadModel"), "loadRefused", () => move("load", {model_id: id.value.trim(), algorithm: algorithm.name, model_path: path.value.trim()}), picker, field(t("modelId"), id), field(`${t("modelPath")} (${t("optional")})`, path))
}
function aliasDialog(old) {
	const [algorithm, picker] = choice(old?.algorithm)
	const alias = entry("alias", 31, {required: true, autofocus: !old, value: old?.alias ?? ""})
	const id = entry("model_id", 64, {required: true, autofocus: old})
	const act = async () => {
		await post("alias", {algorithm: algorithm.name, alias: alias.value.trim(), model_id: id.value.trim()}, {limit: 600000})
		say(t("aliasDone"))
		refresh()
	}
	formDialog(t("setAlias"), t("moveAlias"), "aliasRefused", act, picker, field(t("alias"), alias), field(t("modelId"), id))
}

function workersView() {
	let workers = []
	return {
		tab: "workers",
		title: () => t("workers"),
		load: async () => { ({workers} = await get("workers")) },
		render: () => {
			const most = Math.max(1, ...workers.map(worker => worker.memory ?? 0))
			return [h("div.head", {key: "head"}, h("h1", t("workers"))),
				list("list", t("workers"), table([...["worker", "state", "memory", "models", "since2"].map(name => t(name)), `#${t("restarts")}`], workers.map(worker => h("tr", {key: worker.index},
					h("td", h("strong", `${t("worker")} ${worker.index}`), h("div.soft.small.mono", worker.pid != null ? `pid ${worker.pid}` : "–", worker.isolated ? ` · ${t("isolated")}` : "", worker.devices.map(id => ` · GPU ${id}`))),
					h("td", badge(worker.ready ? "good" : "bad", t(worker.ready ? "ready" : "down")), worker.problem && h("div.why.bad.user", firstLine(worker.problem))),
					h("td", bytes(worker.memory), worker.memory != null && meter(worker.memory / most, "")),
					h("td.full", worker.models.length === 0 ? "–" : worker.models.length <= 3 ? worker.models.map(id => h("div.mono.user", {title: id}, shortId(id))) : h("details", h("summary", plural("held", worker.models.length)), worker.models.slice(0, 500).map(id => h("div.mono.user", id)))),
					h("td.soft", {"data-name": t("since2")}, worker.since == null ? "–" : when(worker.since)),
					cell("restarts", number(worker.restarts))))))]
		},
	}
}

// ---- try it

const LABEL_PARAMS = {type: "object", properties: {threshold: {type: "number", minimum: 0, maximum: 100}, top_n: {type: "integer", minimum: 0}}}

function tryView(values) {
	let models = []
	let chosen = values.model ?? ""
	let form = null
	let built = ""
	const load = async () => {
		await describe()
		models = (await get("models")).models.filter(model => model.state === "loaded")
	}
	const build = () => {
		const model = models.find(({model_id: id}) => id === chosen) ?? models[0]
		chosen = model.model_id
		const algorithm = described(model.algorithm)
		let example = algorithm.examples[0]
		const answer = h("div.stack", {"aria-live": "polite"}, empty(t("noAnswer")))
		const snippets = h("div.stack")
		const isTyped = resolve(algorithm.params).properties
		const paramsSchema = !isTyped && algorithm.kind === "text_classification" ? LABEL_PARAMS : algorithm.params
		const changed = () => drawSnippets(snippets, request())
		const inputs = h("div")
		let features
		const fill = () => { features = formOf(t("features"), algorithm.features, example, changed); inputs.replaceChildren(features.node) }
		fill()
		const params = formOf(t("params"), paramsSchema, isTyped || paramsSchema === LABEL_PARAMS ? undefined : {}, changed)
		const request = () => {
			const options = params.read().value
			return {model_id: chosen, features: features.read().value, ...(options && Object.keys(options).length ? {params: options} : {})}
		}
		const submit = async event => {
			event.preventDefault()
			const wrong = features.read().wrong ?? params.read().wrong
			if (wrong) { wrong.focus(); return }
			const asked = request()
			draw(answer, [h("p.soft", {"aria-busy": "true"}, t("sending"))])
			send.disabled = true
			const began = performance.now()
			try {
				const {data, response} = await ask(platform("predict"), {method: "POST", body: asked, limit: 300000})
				const took = (performance.now() - began) / 1000
				const drawn = drawnAnswer(algorithm.kind, data.predictions, asked)
				const timing = response.headers.get("server-timing")
				draw(answer, [drawn, h("p.soft.small", t("tookMs", {n: duration(took)}), timing && ` · ${timing.split(",").map(timingOf).join(" · ")}`), drawn.className !== "code" && h("details", h("summary", t("raw")), drawJson(data.predictions))])
			} catch (error) {
				refuse(answer, "refused", error)
			} finally { send.disabled = false }
		}
		const send = h("button.main", t("send"))
		const several = algorithm.examples.length > 1 && field(t("exampleLabel"), select("example", "0", algorithm.examples.map((_, index) => [String(index), t("ofExample", {n: index + 1})]), index => { example = algorithm.examples[Number(index)]; fill(); changed() }))
		form = h("div.two", {key: `try-${chosen}-${language}`, keep: true},
			h("form.card", {on: {submit}}, h("div.form", several, inputs, params.node, h("div.actions", send))),
			h("div.stack", card(t("answer"), null, answer), card(t("request"), null, snippets)))
		changed()
	}
	return {
		tab: "tryit",
		once: true,
		title: () => t("tryit"),
		load,
		render: () => {
			const head = h("h1", {key: "head"}, t("tryit"))
			if (models.length === 0) return [head, list("none", t("tryit"), empty(t("nothingToTry"), t("noModelsHelp"), link("#/models", {class: "button"}, t("browseModels"))))]
			if (!models.some(({model_id: id}) => id === chosen)) chosen = models[0].model_id
			if (built !== chosen + language) { build(); built = chosen + language }
			const picker = field(t("model"), select("model", chosen, models.map(model => [model.model_id, `${model.algorithm} · ${shortId(model.model_id)}`]), id => { chosen = values.model = id; history.replaceState(null, "", `#/tryit${query({model: id})}`); drawMain() }))
			return [head, values.model && values.model !== chosen && h("div", {key: "other"}, note("warn", mono(values.model), ": ", t("unloaded"))), h("div.filters", {key: "picker"}, h("div", picker)), form]
		},
	}
}
function timingOf(part) {
	const [name, ...values] = part.trim().split(";")
	const took = values.find(value => value.trim().startsWith("dur="))
	return took ? `${name} ${duration(Number(took.trim().slice(4)) / 1000)}` : name
}
function drawSnippets(place, body) {
	const url = new URL(ROOT + platform("predict"), location.origin).href
	const json = JSON.stringify(body)
	const quoted = json.replaceAll("'", "'\\''")
	const curl = ["curl", `  -H 'Content-Type: application/json'`, ...(token() ? ["  -H \"Authorization: Bearer $MLPKIT_TOKEN\""] : []), `  -d '${quoted}'`, `  ${url}`].join(" \\\n")
	const prefix = summary.prefix === "/" ? "" : `, prefix=${JSON.stringify(summary.prefix)}`
	const python = [...(token() ? ["import os", ""] : []), "from mlpkit import Client", "", `client = Client(${JSON.stringify(location.origin + ROOT.replace(/\/$/, ""))}${prefix}${token() ? ', token=os.environ["MLPKIT_TOKEN"]' : ""})`, `print(client.predict(`, `    ${JSON.stringify(body.model_id)},`, `    ${pythonOf(body.features)},`, ...(body.params ? [`    ${pythonOf(body.params)},`] : []), "))"].join("\n")
	draw(place, [h("div", {key: "curl"}, h("h3.label", "curl"), code(curl)), h("div", {key: "python"}, h("h3.label", "Python"), code(python))])
}
function pythonOf(value) {
	if (value === null || value === undefined) return "None"
	if (value === true) return "True"
	if (value === false) return "False"
	if (Array.isArray(value)) return `[${value.map(pythonOf).join(", ")}]`
	if (typeof value === "object") return `{${pairs(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonOf(item)}`).join(", ")}}`
	return JSON.stringify(value)
}

/** The answer as its kind asks for; as JSON if it is of another shape. */
function drawnAnswer(kind, answer, asked) {
	const draws = {text_classification: drawLabels, text_sequence_labeling: drawEntities, text_cluster: drawClusters, relation_extraction: drawRelations, text_generation: drawTexts}
	try { return (draws[kind] ?? drawJson)(answer, asked) ?? drawJson(answer) } catch { return drawJson(answer) }
}
const drawJson = answer => (typeof answer === "string" ? h("p.marked", answer) : code(pretty(answer)))
const sentenceOf = asked => { const features = asked.features ?? {}; return typeof features.sentence === "string" ? features.sentence : Object.values(features).find(value => typeof value === "string") ?? "" }
const score = value => number(value, 1)

function drawLabels(answer, asked) {
	const limit = asked.params?.threshold
	if (!Array.isArray(answer)) return null
	if (answer.length === 0) return h("p.soft", t("noLabels"))
	return h("div.stack", h("div.labels", answer.slice(0, 100).flatMap(item => [user(item.label), h("span", {class: `track ${item.score < limit ? "under" : ""}`}, h("i", {style: {width: `${Math.min(100, Math.max(0, item.score))}%`}}), limit != null && h("u", {style: {left: `${limit}%`}, title: t("threshold", {n: limit})})), h("span.num", score(item.score))])), limit != null && h("p.soft.small", t("threshold", {n: limit})))
}
function drawEntities(answer, asked) {
	return h("div.stack", [answer].flat().map(part => drawMarked(part, sentenceOf(asked))))
}
function drawMarked({entity_list: found, score: common}, sentence) {
	// Positions count characters, as Python does, not units of UTF-16.
	const letters = [...sentence]
	const kinds = [...new Set(found.map(entity => entity.label))]
	const parts = []
	let place = 0
	for (const entity of [...found].sort((a, b) => a.start_pos - b.start_pos)) {
		if (entity.start_pos < place || entity.end_pos >= letters.length) continue
		parts.push(letters.slice(place, entity.start_pos).join(""), h(`mark.k${kinds.indexOf(entity.label) % 4}`, {title: `${entity.label} ${score(entity.score)}`}, letters.slice(entity.start_pos, entity.end_pos + 1).join(""), h("sub", entity.label)))
		place = entity.end_pos + 1
	}
	parts.push(letters.slice(place).join(""))
	return [h("p.marked", parts), found.length === 0 ? h("p.soft", t("noEntities")) : h("p.soft.small", score(common))]
}
function drawClusters(answer) {
	if (!Array.isArray(answer)) return null
	if (answer.length === 0) return h("p.soft", t("noClusters"))
	return h("ul.groups", answer.slice(0, 200).map(group => h("li", h("div.head", h("strong", user(group.cluster_name)), h("span.soft.small", score(group.score))), h("ul", group.cluster.slice(0, 100).map(text => h("li", user(text)))))))
}
function drawRelations(answer) {
	const found = Array.isArray(answer) ? answer : answer.relations
	if (!Array.isArray(found)) return null
	if (found.length === 0) return h("p.soft", t("noRelations"))
	const side = item => h("span", user(item.name), h("span.soft.small", " ", user(item.label)))
	return h("ul", found.slice(0, 200).map(relation => h("li.triple", side(relation.subject), h("span", {title: score(relation.score)}, user(relation.predicate.text)), side(relation.object))))
}
function drawTexts(answer) {
	if (!Array.isArray(answer)) return null
	return h("ul.stack", answer.slice(0, 50).map(item => h("li", h("p.marked", item.text ?? item), item.score != null && h("span.soft.small", score(item.score)))))
}

// ---- begin

document.body.append(h("a.skip", {href: "#content", on: {click: event => { event.preventDefault(); main.focus() }}}, t("skip")), top, main, foot, toast)
addEventListener("hashchange", () => { route(); main.focus({preventScroll: true}); scrollTo(0, 0) })
document.addEventListener("visibilitychange", () => { if (document.hidden) streaming?.abort(); else { follow(); refresh() } })
route()
follow()
