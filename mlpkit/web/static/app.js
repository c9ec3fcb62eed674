// The page of a service. It asks the routes of mlpkit and draws their answers. Text of users and authors becomes text nodes and checked
// attributes (`h`), never HTML. First comes what all views use, then the views in the order of the menu.

// ---- language

// One text a line: key, English (left out: the key with a capital), Chinese. `{name}` is a value, and of `{job is/jobs are}` the first is
// for one, the second for all other numbers `n`.
const TEXT = new Map(`
overview||概览
jobs||任务
models||模型
workers||工作进程
tryit|Try it|试用
data||数据
skip|Skip to the content|跳到正文
main||主菜单
dark||深色
light||浅色
other|中文|English
loading|Loading…|正在加载…
all||全部
close||关闭
cancelled|cancelled|已取消
copy||复制
copied||已复制
again|Try again|重试
of|{a} of {b}|{a} / {b}
perSecond|{n}/s|{n}/秒
forget|Forget the token|忘记令牌
docs|Routes|接口
tokenTitle|This service needs a token|此服务需要令牌
tokenHelp|The value of MLPKIT_TOKEN. This tab keeps it until you close it.|MLPKIT_TOKEN 的值，仅在此标签页关闭前保存。
token||令牌
tokenWrong|The service refused this token.|服务拒绝了此令牌。
enter|Continue|继续
gone|The service does not answer.|服务没有响应。
goneSince|You see the state of {time}.|以下内容截至 {time}。
starting|The service is starting.|服务正在启动。
draining|The service is stopping.|服务正在停止。
notTaking|The service takes no requests now.|服务目前不接受请求。
runs|{n} {job is/jobs are} running|{n} 个任务正在运行
waits|{n} {is/are} waiting|{n} 个在排队
onlyWaits|{n} {job is/jobs are} waiting|{n} 个任务在排队
noJobs|No job is running or waiting|没有正在运行或排队的任务
failedOnce|One failed {ago}: {why}|{ago}有 1 个任务失败：{why}
failedOften|{n} failed in the last 24 hours, the latest {ago}: {why}|最近 24 小时有 {n} 个任务失败，最近一次（{ago}）：{why}
missingModels|{n} {model is/models are} missing.|缺少 {n} 个模型。
serves|{n} {model is/models are} loaded in {workers}.|{workers}已加载 {n} 个模型。
someWorkers|{n} {worker/workers}|{n} 个工作进程
stop|.|。
comma|, |，
colon|: |：
service||服务
phase||服务状态
ready||就绪
starts|Starting|正在启动
drains|Stopping|正在停止
notready|Not ready|未就绪
warning||警告
uptime|Up for|已运行
since|since {time}|自 {time}
version||版本
memServer|Memory of the server|服务器进程内存
machine|{n} free on the machine|机器剩余 {n}
disk|Disk of the home|主目录所在磁盘
free|{n} free|剩余 {n}
cache|File cache|文件缓存
database||数据库
store||存储
requests||请求
rate|Predictions|预测
failures||失败
latency|Time of predictions|预测耗时
queue|Work|运行与排队
predWait|predictions waiting|排队的预测
jobsRun|jobs running|运行中的任务
jobsWait|jobs waiting|排队的任务
noSamples|The first figures come after 10 seconds.|10 秒后会有第一批数据。
chartOf|{title}: now {now}, at most {max}|{title}：当前 {now}，最高 {max}
train||训练
algorithm||算法
state||状态
submitted||提交时间
find||查找
findHint|a part of the id|模型 id 的一部分
hour|The last hour|最近一小时
day|The last 24 hours|最近 24 小时
week|The last 7 days|最近 7 天
init|waiting|排队中
training|running|运行中
completed|completed|已完成
error|failed|失败
job||任务
progress||进度
took|Time|用时
noJobsYet|No jobs yet|还没有任务
noMatch|Nothing fits the filters|没有符合条件的内容
clear|Clear the filters|清除筛选
page|{a}–{b} of {all}|第 {a}–{b} 个，共 {all} 个
previous||上一页
next||下一页
silent|no report for {time}|{time}没有上报
position|position {n}|排在第 {n} 位
estimate|starts in about {time}|约 {time}后开始
left|about {time} left|剩余约 {time}
keep|Keep it|保留
cancel||取消任务
cancelAsk|Cancel this job?|取消这个任务？
cancelHelp|It ends now, and what it has made is discarded.|任务立即结束，已有的结果会丢弃。
end|Ask to end|提前结束
endAsk|Ask this job to end?|提前结束这个任务？
endHelp|It may save a checkpoint or a model first.|它可以先保存检查点或模型。
trainAgain|Train again|再次训练
showStack|Show stack|查看调用栈
stackTitle|Where the job is now|任务正在执行的位置
stackHelp|One block a thread, the innermost call first.|每个线程一段，最内层的调用在最前。
lastReport|Last report|最近上报
facts||基本信息
attempt||运行次数
started||开始时间
ended||结束时间
pid|Process|进程
uuid|Request id|请求 id
model_path|Model path|模型路径
memory||内存
metrics||指标
asked|What it was asked|请求内容
parameters||参数
extend||扩展字段
log||日志
follow||实时跟踪
noLog|The log is empty so far.|日志暂时为空。
jobGone|There is no such job|没有这个任务
evaluation||评估
noResult|There is no result|没有结果
failedRows|{n} rows had no answer and count as wrong, first line {line}|{n} 行没有预测结果，按错误计算，第一处在第 {line} 行
inBoth|{n} sentences are training data too, so the figures are too good.|{n} 个句子也在训练数据中，指标偏高。
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
right|right|正确
missed|missed|漏检
invented|invented|误检
wrong_type|wrong type|类型错误
wrong_border|wrong border|边界错误
labels||标签
label||标签
precision||精确率
recall||召回率
support||样本数
confusions|Most frequent confusions|最常见的混淆
wanted||标注为
got|Answered|预测为
count||次数
thresholds||阈值
atLeast|Score of at least|分数不低于
answered|Answers|结果数
correct|Right|正确率
errors|Most confident errors|置信度最高的错误
advice|These are often wrong labels in the test rows.|这些往往是测试数据中的标签错误。
line||行
sentence||句子
score||分数
compare||对比
noEvaluations|There are no two evaluated jobs|没有两个经过评估的任务
noEvaluationsHelp|A training with test rows evaluates its model.|有测试数据的训练会评估模型。
otherRows|They had different test rows, so the figures cannot be compared well.|两者的测试数据不同，数值不宜直接比较。
figure||指标
difference|B against A|B 相对 A
better|better|更好
worse|worse|更差
f1OfLabels|F1 of the labels|各标签的 F1
location|Training data|训练数据
locationHelp|A path in the data bucket. A row: {columns}|数据桶中的路径。每行：{columns}
putFile|Put a file there|上传文件
extendHelp|For the algorithm.|供算法使用。
pathHelp|Empty for the usual place.|留空使用默认位置。
startTrain|Start training|开始训练
cannotTrain|No algorithm of this service can be trained|此服务没有可训练的算法
uploadsOff|This service takes no files|此服务不接收文件
uploadsOffHelp|MLPKIT_UPLOAD=on lets you check files here and put them into the data bucket.|设置 MLPKIT_UPLOAD=on 后，可在此检查文件并放入数据桶。
drop|Drop a file here, or choose one|把文件拖到这里，或选择一个文件
dropHelp|It is stored only if a training can use it. A row: {columns}. At most {n}.|可用于训练的文件才会保存。每行：{columns}。最大 {n}。
tooLarge|It is larger than {n} (MLPKIT_UPLOAD_SIZE).|文件大于 {n}（MLPKIT_UPLOAD_SIZE）。
result||结果
uploading|Sending the file…|正在上传文件…
checking|Checking the file…|正在检查文件…
stopUpload|Stop|停止上传
stopped|Stopped. The service keeps nothing of the file.|已停止，服务不会保留这个文件。
fileStored|The file is in the data bucket|文件已在数据桶中
trainOn|Train on it|用它训练
found|Lines: {lines}, rows: {rows}, blank lines: {blank}, errors: {errors}, warnings: {warnings}|行 {lines}，数据 {rows}，空行 {blank}，错误 {errors}，警告 {warnings}
findings||检查结果
severity||级别
mistake|Error|错误
column||列
message||说明
positive|Examples|正例
negative|Counter-examples|负例
notListed|{n} more are not listed.|另有 {n} 个未列出。
model||模型
model_id|Model id|模型 id
load||加载
loadOne|Load a model|加载模型
loaded|loaded|已加载
loadingState|loading|正在加载
unloading|unloading|正在卸载
unloaded|not loaded|未加载
missing|missing|缺失
evicted|evicted|已淘汰
evictedWhy|Memory was short. A prediction loads it again.|因内存不足而卸载，预测时会重新加载。
lazily|loaded when asked|按需加载
unload||卸载
unloadAsk|Unload this model?|卸载这个模型？
unloadHelp|Predictions in flight end first. The stored model stays.|先完成进行中的预测。已保存的模型会保留。
noModels|No model is loaded|没有已加载的模型
noModelsHelp|Load one of a completed job, or of the store.|可加载已完成任务的或已保存的模型。
total|{n} in all|共 {n}
perCall|p50 of a call|单次调用 p50
batch|Batch size|批大小
waiting||排队
actions||操作
stored|Stored models|已保存的模型
created|Stored|保存时间
size||大小
f1||F1
more|Show more|显示更多
aliases||别名
alias||别名
setAlias|Set an alias|设置别名
move||切换
done||完成
worker||工作进程
restarts||重建次数
since2|Since|生效时间
isolated|one model|独占进程
down|down|未运行
onNode|{what} on {node}|{what} 位于 {node}
held|{n} {model/models}|{n} 个模型
features|Input|输入
params|Options|选项
send|Predict|预测
sending|Waiting for the answer…|正在等待预测结果…
answer||预测结果
request|The request|请求
noAnswer|The answer appears here|预测结果会显示在这里
refused|This did not work|操作未成功
tookMs|{n} in all, network included|共 {n}，含网络耗时
optional|optional|可选
perLine|one per line|每行一个
asJson|as JSON|JSON 格式
noLabels|No label is above the threshold.|没有超过阈值的标签。
foundNothing|Nothing was found.|没有找到结果。
threshold|threshold {n}|阈值 {n}
example||示例
nothingToTry|No model is loaded to try|没有可试用的模型
needed|This is needed.|必填。
notNumber|Not a number.|不是数字。
notJson|Not valid JSON: {why}|不是有效的 JSON：{why}
wrongType|Must be of type {what}.|类型须为 {what}。
wrongSize|Must be {rule}.|须 {rule}。
wrongLength|The length must be {rule}.|长度须 {rule}。
oneOf|One of: {list}|可选值：{list}
lacks|The field “{name}” is missing.|缺少字段“{name}”。
`.trim().split("\n").map(line => line.split("|")).map(([key, en, zh]) => [key, {en: en || key[0].toUpperCase() + key.slice(1), zh}]))

const saved = name => { try { return localStorage.getItem(`mlpkit-${name}`) } catch { return null } }
const save = (name, value) => { try { localStorage.setItem(`mlpkit-${name}`, value) } catch { /* a private window */ } }
let language = saved("language") ?? (navigator.languages ?? [navigator.language]).map(tag => tag.slice(0, 2)).find(tag => tag === "zh" || tag === "en") ?? "en"

// The text of a key in the language of the reader; what is not a key stays as it is.
function t(key, values = {}) {
	const text = TEXT.get(key)?.[language] ?? key
	return text.replace(/\{([^}]+)\}/g, (all, name) => {
		if (name.includes("/")) return name.split("/")[values.n === 1 ? 0 : 1]
		const value = values[name] ?? all
		return typeof value === "number" ? number(value, 6) : value
	})
}

// ---- formatting

const locale = () => (language === "zh" ? "zh-CN" : "en-GB")
const number = (value, most = 0, least = 0) => new Intl.NumberFormat(locale(), {maximumFractionDigits: most, minimumFractionDigits: least}).format(value)
const share = value => number(value, 3, 3)
const significant = value => new Intl.NumberFormat(locale(), {maximumSignificantDigits: 4}).format(value)
const percent = share => `${Math.floor(share * 100)} %`
const perSecond = value => t("perSecond", {n: number(value, 1)})

function bytes(size) {
	if (size == null) return "–"
	const units = ["B", "KiB", "MiB", "GiB", "TiB"]
	let power = 0
	while (size >= 1024 && power < units.length - 1) { size /= 1024; power += 1 }
	return `${number(size, size < 10 && power > 0 ? 1 : 0)} ${units[power]}`
}

// Seconds as one or two units: 42 s, 3 min, 2 h 5 min, 3 d.
function duration(seconds) {
	if (!Number.isFinite(seconds)) return "–"
	const [second, minute, hour, day] = language === "zh" ? ["秒", "分钟", "小时", "天"] : ["s", "min", "h", "d"]
	const two = (large, name, small, rest) => `${large} ${name}${small ? ` ${small} ${rest}` : ""}`
	const s = Math.max(0, seconds)
	if (s < 1) return `${number(s * 1000, s < 0.01 ? 1 : 0)} ms`
	if (s < 90) return `${number(s, s < 10 ? 1 : 0)} ${second}`
	const minutes = Math.round(s / 60)
	if (minutes < 90) return `${minutes} ${minute}`
	const hours = Math.floor(minutes / 60)
	return hours < 36 ? two(hours, hour, minutes % 60, minute) : two(Math.floor(hours / 24), day, hours % 24, hour)
}

// Seconds between this machine's clock and the service's: all times are the service's.
let clockOffset = 0
const nowSeconds = () => Date.now() / 1000 + clockOffset

function ago(time) {
	const passed = Math.max(0, nowSeconds() - time)
	const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([least]) => passed >= least) ?? [1, "second"]
	return new Intl.RelativeTimeFormat(locale(), {numeric: "auto"}).format(passed < 5 ? 0 : -Math.round(passed / size), unit).replace(/\d(?=[^\d ])/, "$& ")
}
const clock = time => new Date(time * 1000).toLocaleString(locale(), {dateStyle: "medium", timeStyle: "medium"})
const timeOfDay = time => new Date(time * 1000).toLocaleTimeString(locale())
const when = time => (time == null ? "–" : h("time", {title: clock(time), datetime: new Date(time * 1000).toISOString()}, ago(time)))

const LONGEST = 20000
const ANSI = /(?:\u001b|\\x1b)\[[0-9;?]*[ -/]*[@-~]/g
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g
// Text without what could hide or turn other text: terminal codes, control characters, direction marks; not too long.
function clean(text, longest = LONGEST) {
	let shown = text.length > longest ? `${text.slice(0, longest)}… (+${number(text.length - longest)})` : text
	if (shown.includes("[")) shown = shown.replace(ANSI, "")
	return shown.replace(UNSEEN, mark => (mark === "\u200b" ? "" : `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`))
}
const firstLine = text => clean(text, 300).split("\n")[0]

// ---- document

const pairs = Object.entries
const joined = (...parts) => parts.filter(Boolean).join(" · ")
const SVG = "http://www.w3.org/2000/svg"
const SVG_TAGS = new Set(["svg", "path"])
const PROPERTIES = new Set(["key", "keep", "checked"])

// An element, as `div.class.class`, with attributes (or none) and children. `on` has listeners, `label` is `aria-label`, `key` names it
// among its siblings, and one with `keep` stays as it is.
function h(name, ...children) {
	const [tag, ...classes] = name.split(".")
	const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag)
	if (classes.length) node.setAttribute("class", classes.join(" "))
	const props = children[0]?.constructor === Object ? children.shift() : {}
	for (const [name, value] of pairs(props)) {
		if (value == null || value === false) continue
		if (name === "on") listen(node, value)
		else if (PROPERTIES.has(name) || (name === "value" && tag !== "progress")) node[name] = value
		else node.setAttribute(name === "label" ? "aria-label" : name, value === true ? "" : clean(String(value)))
	}
	node.append(...nodesOf(children))
	return node
}
// Children as nodes: text becomes text nodes, arrays are opened, and null, false and "" are left out.
function nodesOf(children) {
	const shown = [children].flat(Infinity).filter(child => child != null && child !== false && child !== "")
	return shown.map(child => (child instanceof Node ? child : document.createTextNode(clean(String(child)))))
}
function listen(node, listeners) {
	node.listeners ??= {}
	for (const [type, listener] of pairs(listeners)) {
		if (!(type in node.listeners)) node.addEventListener(type, event => node.listeners[type]?.(event))
		node.listeners[type] = listener
	}
}

// Makes the children of an element like `fresh`, and keeps elements that stay: focus, selection and scrolling too.
function draw(parent, ...fresh) {
	const keyed = new Map([...parent.childNodes].filter(node => node.key != null).map(node => [node.key, node]))
	let place = parent.firstChild
	for (const node of nodesOf(fresh)) {
		const old = node.key != null ? keyed.get(node.key) : place?.key == null ? place : null
		if (old?.nodeName === node.nodeName) {
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
	for (const {name, value} of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value)
	if (fresh.listeners) listen(old, fresh.listeners)
	draw(old, [...fresh.childNodes])
	if (old instanceof HTMLSelectElement && old !== document.activeElement && old.value !== fresh.value) old.value = fresh.value
}

// The pieces of all views. A name is a key of TEXT; a name or text of users and authors is a node (`user`, `mono`).
const user = text => h("span.user", text)
const mono = text => h("span.user.mono", text)
const shortId = id => (id.length > 22 ? `${id.slice(0, 20)}…` : id)
const idOf = id => h("span.user.mono", {title: id}, shortId(id))
const isString = value => typeof value === "string"
const named = name => (isString(name) ? t(name) : name)
const link = (href, name, props) => h("a", {href, ...props}, named(name))
// A link that looks like a button.
const goTo = (href, name, kind = "", label) => h(`a.button${kind}`, {href, key: name, label}, t(name))
const button = (name, click, props) => h("button", {type: "button", key: name, on: {click}, ...props}, t(name))
const badge = (kind, name) => h(`span.badge.${kind}`, t(name))
const soft = (...children) => h("p.soft", children)
const small = (...children) => h("p.soft.small", children)
const note = (kind, ...content) => h(`div.note.${kind}`, ...content)
const because = (kind, name, text) => note(kind, {key: name}, h("strong", t(name)), t("colon"), user(text))
const empty = (name, help, ...more) => h("div.empty", h("strong", named(name)), help && h("p", t(help)), more)
const heading = (name, ...actions) => h("div.head", {key: "head"}, h("h1", t(name)), actions.length > 0 && acts(actions))
const card = (name, ...children) => h("section.card", {key: name}, h("h2", t(name)), children)
const list = (name, ...children) => h("section.card.flush", {key: name, label: t(name)}, children)
const titled = (name, ...children) => list(name, h("h2", t(name)), children)
const namesOf = algorithms => algorithms.map(({name}) => name)
const section = (name, ...children) => h("div", h("h3", t(name)), children)
const facts = (...children) => h("dl.facts", children)
const fact = (name, value, more) => h("div", h("dt", named(name)), h("dd", value, more && h("small", more)))
const wideFact = (name, text) => h("div.wide", h("dt", t(name)), h("dd", mono(text)))
const busy = name => h("p.soft", {"aria-busy": "true"}, t(name))
// Something with small grey text below it.
const below = (content, ...more) => [content, h("div.soft.small", more)]
// The reason of something bad, in a row.
const why = text => text && h("div.why.user", firstLine(text))
const backTo = name => h("a", {href: `#/${name}`}, `← ${t(name)}`)
const headingBelow = (parent, name) => h("div.stack", {key: "head"}, backTo(parent), h("h1", t(name)))

// A table. A row is a list: its key, and its cells. A column is marks and the key of its heading: `#` is for numbers; on a phone, the
// heading stands beside a cell with `#` or `:`, a cell with `*` has a line of its own, and one with `–` is left out.
function table(columns, rows) {
	const heads = columns.split(" ").map(column => {
		const [, marks, key] = /^([#:*]*)(.*)$/.exec(column)
		return {name: t(key), kind: `${marks.includes("#") ? ".num" : ""}${marks.includes("*") ? ".full" : ""}`, isNamed: /^[#:]$/.test(marks)}
	})
	const cell = (content, index) => h(`td${heads[index].kind}${content === "–" ? ".none" : ""}`, {"data-name": heads[index].isNamed ? heads[index].name : null}, content)
	return h("div.scroll", h("table",
		h("thead", h("tr", heads.map(({name, kind}) => h(`th${kind}`, {scope: "col"}, name)))),
		h("tbody", rows.map(([key, ...cells]) => h("tr", {key}, cells.map(cell))))))
}
// A button in a row: its label says what it belongs to.
const does = (name, what, click, kind) => button(name, click, {class: kind, label: `${t(name)}: ${what}`})
const acts = (...buttons) => h("div.actions", buttons)

const PAGE = 25
// Buttons to the pages of a list.
function pager(start, total, go) {
	if (total <= PAGE && start === 0) return null
	return h("div.pager", {key: "pager"}, h("span", t("page", {a: Math.min(start + 1, total), b: Math.min(start + PAGE, total), all: total})), acts(
		button("previous", () => go(Math.max(0, start - PAGE)), {class: "mini", disabled: start === 0}),
		button("next", () => go(start + PAGE), {class: "mini", disabled: start + PAGE >= total})))
}

const field = (name, input, props) => h("label", props, h("span", named(name)), input)
const entry = (name, props) => h("input", {name, autocomplete: "off", spellcheck: "false", ...props})
// Fields that choose what a list shows; the last one finds a part of a model id.
function filtersOf(found, find, ...fields) {
	const input = event => find(event.target.value.trim())
	return h("form.filters", {key: "filters", role: "search", on: {submit: event => event.preventDefault()}}, fields,
		field("find", entry("find", {type: "search", value: found, placeholder: t("findHint"), maxlength: 64, on: {input}}), {class: "grow"}))
}
// A list of options: values, or pairs of a value and its text. Without a known value, the first is chosen.
function select(name, value, options, change) {
	const node = h("select", {name, on: change && {change: event => change(event.target.value)}},
		options.map(option => [option].flat()).map(([value, text = value]) => h("option", {value, key: value}, text)))
	node.value = value
	if (node.selectedIndex < 0) node.selectedIndex = 0
	return node
}
const choice = (name, ...rest) => field(name, select(name, ...rest))

let toastTimer = 0
function say(name) {
	draw(toast, t(name))
	clearTimeout(toastTimer)
	toastTimer = setTimeout(() => draw(toast), 4000)
}
async function copy(text) {
	try { await navigator.clipboard.writeText(text) } catch {
		const area = h("textarea.hidden", {value: text})
		document.body.append(area); area.select(); document.execCommand("copy"); area.remove()
	}
	say("copied")
}
// Text to copy, below its name.
const code = (text, name) => h("div", {key: name}, h("div.title", name && h("h3.label", t(name)), button("copy", () => copy(text), {class: "mini"})), h("pre", {tabindex: "0"}, text))
const pretty = value => JSON.stringify(value, null, 2)

// Opens a dialog; gives it. `content` gets a function that closes it.
function open(name, content, kind) {
	const box = h("dialog", {class: kind, label: t(name), on: {close: () => box.remove()}})
	box.append(h("div.inside", h("h2", t(name)), content(() => box.close())))
	document.body.append(box)
	box.showModal()
	return box
}
// A form. Its button `yes` does `act` with the values, once at a time; why the service refuses it is shown above the button.
function formFor(yes, act, content, more) {
	const problem = h("div")
	const ok = h("button.main", t(yes))
	const submit = async event => {
		event.preventDefault()
		ok.disabled = true
		draw(problem)
		try {
			await act(Object.fromEntries([...new FormData(event.target)].map(([name, value]) => [name, value.trim()])))
		} catch (error) {
			refuse(problem, error)
			problem.scrollIntoView({block: "nearest"})
		} finally { ok.disabled = false }
	}
	return h("form.form", {on: {submit}}, content, problem, acts(more, ok))
}
// A dialog with a form; it stays open while the service refuses.
const formDialog = (name, yes, content, act, isNeeded) => open(name, close =>
	formFor(yes, async values => { await act(values); close() }, content, !isNeeded && button("close", close)))
// Asks before something that cannot be undone; `name` is its button, `…Ask` the question about `id`, `…Help` what it does.
function confirmed(name, id, act) {
	open(`${name}Ask`, close => [mono(id), soft(t(`${name}Help`)), acts(
		button("keep", close, {autofocus: true}),
		button(name, () => { close(); attempt(act) }, {class: "danger"}))])
}
// Does something; a failure is shown in a dialog.
async function attempt(act) {
	try { await act() } catch (error) {
		if (expected(error).status !== 401) open("refused", close => [note("bad", user(error.message)), acts(button("close", close, {class: "main", autofocus: true}))])
	}
}
// Shows why the service has refused something.
function refuse(place, error) {
	place.append(h("div", {role: "alert"}, because("bad", "refused", expected(error).message)))
}
// An error that is a failure; all others are mistakes of this page.
function expected(error) {
	if (error instanceof Failure) return error
	throw error
}

// ---- calls

const ROOT = location.pathname.replace(/[^/]*$/, "")
const TOKEN = "mlpkit-token"
const token = () => sessionStorage.getItem(TOKEN) ?? ""
const MINUTES = 60_000

// An answer that is not a success. `status` is 0 if there was none; `report` is that of a file that was refused.
class Failure extends Error {
	constructor(message, status = 0, {kind = "", report} = {}) { super(message); Object.assign(this, {status, kind, report}) }
}

// Sends a file as `fetch` does, and tells `sent` which share has gone, which `fetch` cannot.
const put = (path, {body, headers, signal, sent}) => new Promise((resolve, reject) => {
	signal.throwIfAborted()
	const request = new XMLHttpRequest()
	request.open("PUT", path)
	request.timeout = 60 * MINUTES
	for (const [name, value] of pairs(headers)) request.setRequestHeader(name, value)
	request.upload.onprogress = ({loaded, total}) => sent(loaded / total)
	request.onloadend = () => {
		const headers = {"content-type": request.getResponseHeader("content-type") ?? ""}
		if (request.status) resolve(new Response(request.response, {status: request.status, headers}))
		else reject(new Error())
	}
	signal.onabort = () => request.abort()
	request.send(body)
})

async function ask(path, {method = "GET", body, headers = {}, limit = MINUTES / 2, signal = AbortSignal.timeout(limit), sent} = {}) {
	const used = token()
	if (used) headers.Authorization = `Bearer ${used}`
	if (body !== undefined && !sent) { headers["Content-Type"] = "application/json"; body = JSON.stringify(body) }
	let response
	try {
		response = await (sent ? put(ROOT + path, {body, headers, signal, sent}) : fetch(ROOT + path, {method, body, headers, signal, cache: "no-store", credentials: "omit"}))
	} catch (error) { throw new Failure(error.name === "TimeoutError" ? error.message : t("gone")) }
	if (response.status === 401) { if (used === token()) needToken(Boolean(used)); throw new Failure(t("tokenTitle"), 401) }
	const content = response.headers.get("content-type")?.startsWith("application/json") ? await response.json().catch(() => ({})) : null
	if (content ? content.status !== "success" : !response.ok) {
		throw new Failure(content?.message ?? `HTTP ${response.status}`, response.status, {kind: response.headers.get("x-mlpkit-error"), report: content?.report})
	}
	return {data: content?.data, response}
}
const get = async path => (await ask(path)).data
const post = async (path, body, limit) => (await ask(path, {method: "POST", body, limit})).data
const platform = route => (summary?.prefix ?? "/").slice(1) + route
const enc = encodeURIComponent
const jobPath = (id, rest = "") => `jobs/${enc(id)}${rest}`
function query(values) {
	const text = String(new URLSearchParams(pairs(values).filter(([, value]) => value !== "" && value != null)))
	return text && `?${text}`
}

// The server-sent events of an answer, as [name, data].
async function* eventsOf(response) {
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
	let text = ""
	for (;;) {
		const {done, value} = await reader.read().catch(() => { throw new Failure(t("gone")) })
		if (done) return
		const events = (text + value).split("\n\n")
		text = events.pop()
		for (const event of events) {
			const {event: name, data} = Object.fromEntries(event.split("\n").map(line => line.split(/: ?(.*)/s)))
			if (name) yield [name, data]
		}
	}
}

let tokenBox = null
function needToken(wasWrong) {
	sessionStorage.removeItem(TOKEN)
	if (tokenBox) return
	const input = entry("token", {type: "password", required: true, autofocus: true})
	const box = tokenBox = formDialog("tokenTitle", "enter", [wasWrong && note("bad", t("tokenWrong")), soft(t("tokenHelp")), field("token", input)], values => {
		sessionStorage.setItem(TOKEN, values.token)
		tokenBox = null
		refreshAll()
	}, true)
	// The browser closes it at the second Escape.
	box.addEventListener("close", () => { if (tokenBox === box) { tokenBox = null; needToken(wasWrong) } })
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
const VIEWS = ["overview", "jobs", "models", "data", "tryit", "workers"]

const darkWished = matchMedia("(prefers-color-scheme: dark)")
const {documentElement: page} = document
function setTheme(theme) { page.dataset.theme = theme ?? (darkWished.matches ? "dark" : "light") }
setTheme(saved("theme"))
darkWished.addEventListener("change", () => setTheme(saved("theme")))

function drawFrame() {
	page.lang = locale()
	const next = language === "zh" ? "en" : "zh"
	const other = page.dataset.theme === "dark" ? "light" : "dark"
	const counts = summary && {jobs: summary.jobs.running + summary.jobs.waiting, models: summary.models.loaded, workers: summary.workers.all}
	const state = !summary || unreachableSince ? "calm" : summary.ready && summary.warnings.length ? "warn" : phaseKind()
	const tab = name => h("li", {key: name}, link(name === "overview" ? "#/" : `#/${name}`, [t(name), counts?.[name] ? h("span.count", number(counts[name])) : null], {"aria-current": view.tab === name ? "page" : null}))
	draw(top, h("div.bar",
		h("a.brand", {href: "#/"}, h("img", {src: `${ROOT}page/icon.svg`, alt: ""}), "mlpkit", h(`span.dot.${state}`, {title: summary ? t(phaseWord()) : ""})),
		h("nav", {label: t("main")}, h("ul", VIEWS.map(tab))),
		h("div.tools",
			button("other", () => { language = next; save("language", next); route() }, {class: "plain", lang: next}),
			button(other, () => { save("theme", other); setTheme(other); redrawAll() }, {class: "plain"}))))
	draw(foot, summary && h("span", `mlpkit ${summary.version}`), link(`${ROOT}docs`, "docs"),
		token() && button("forget", () => { sessionStorage.removeItem(TOKEN); needToken(false) }, {class: "plain mini"}))
	document.title = `${t(view.title ?? view.tab)} · mlpkit`
}
const phaseWord = () => ({starting: "starts", draining: "drains"})[summary.phase] ?? (summary.ready ? "ready" : "notready")
const phaseKind = () => ({ready: "good", notready: "bad"})[phaseWord()] ?? "busy"

function drawMain() {
	const {failure} = view
	const content = failure ? [heading(view.tab), empty(failure.kind === "JobNotFound" ? "jobGone" : user(failure.message), null, failure.kind === "JobNotFound" ? backTo("jobs") : button("again", refreshAll))]
		: view.isReady ? view.render() : unreachableSince ? heading(view.tab) : busy("loading")
	draw(main, unreachableSince > 0 && note("bad", {key: "banner", role: "alert"}, h("strong", t("gone")), " ", view.isReady && t("goneSince", {time: timeOfDay(answeredAt)})),
		view.tab !== "overview" && summary?.phase === "draining" && note("warn", {key: "draining"}, t("draining")), content)
}
function redrawAll() { drawFrame(); drawMain() }

// The views by the first part of their path. A view has a tab, a title if that is another, what it loads and what it draws.
const ROUTES = {
	"": overview, train: trainView, models: modelsView, compare: compareView, data: dataView, tryit: tryView, workers: workersView,
	jobs: (values, id) => (id ? jobView(id) : jobsView(values)),
}
// Ends the prediction of a view that is left.
let leaving = null
function route() {
	leaving?.abort()
	const [path, search] = location.hash.slice(2).split("?")
	const [name, ...rest] = path.split("/")
	let id = rest.join("/")
	try { id = decodeURIComponent(id) } catch { /* shown as it is */ }
	view = (Object.hasOwn(ROUTES, name) ? ROUTES[name] : overview)(Object.fromEntries(new URLSearchParams(search)), id)
	draw(main)
	redrawAll()
	// On a phone the menu is wider than the screen.
	top.querySelector("[aria-current]")?.scrollIntoView({block: "nearest", inline: "nearest"})
	refresh()
}
// Puts values into the address, so that it can be sent to others, and asks again.
function keepInAddress(path, values) {
	history.replaceState(null, "", `#/${path}${query(values)}`)
	refresh()
}

let timer = 0
let isAsking = false
async function refresh() {
	clearTimeout(timer)
	const current = view
	if (document.hidden || tokenBox) return
	if (isAsking) { timer = setTimeout(refresh, 100); return }
	isAsking = true
	try {
		const asked = get("summary").then(data => { summary = data; clockOffset = data.now - Date.now() / 1000 })
		await Promise.all([asked, current.load()])
		current.isReady = true
		current.failure = null
		unreachableSince = 0
		answeredAt = Date.now() / 1000
	} catch (error) {
		if (!(error instanceof Failure)) console.error(error)
		if (error.status === 0) unreachableSince ||= Date.now()
		else if (error.status !== 401) {
			unreachableSince = 0
			if (!current.isReady || error.kind === "JobNotFound") current.failure = error
		}
	} finally { isAsking = false }
	if (view === current) redrawAll()
	timer = setTimeout(refresh, streaming ? 5000 : 2000)
}
function refreshAll() { view.failure = null; follow(); refresh() }

// Events tell when something has changed, so that the page asks at once; without them it asks every 2 seconds.
let streaming = null
let changed = 0
async function follow() {
	streaming?.abort()
	streaming = null
	if (document.hidden) return
	const control = new AbortController()
	try {
		const {response} = await ask("events", {signal: control.signal, headers: {Accept: "text/event-stream"}})
		streaming = control
		for await (const _ of eventsOf(response)) changed ||= setTimeout(() => { changed = 0; refresh() }, 700)
	} catch (error) {
		if (control.signal.aborted || error.status === 401) return
	}
	if (streaming === control) streaming = null
	setTimeout(() => { if (!streaming) follow() }, 5000)
}

// ---- overview

const notesOf = (kind, name, texts) => texts.length > 0 && h("ul.notes", {key: name}, texts.slice(0, 20).map(text => h("li", because(kind, name, text))))
// What an operator needs to know, as a few short sentences.
function sentence() {
	const {jobs, models, failed, phase, ready, workers} = summary
	const state = ready ? null : phase === "ready" ? "notTaking" : phase
	const waiting = jobs.waiting > 0 && t(jobs.running ? "waits" : "onlyWaits", {n: jobs.waiting})
	const running = jobs.running > 0 && t("runs", {n: jobs.running})
	const work = [running, waiting].filter(Boolean).join(t("comma")) || t("noJobs")
	const parts = [state && t(state), work + t("stop")]
	if (failed.last) {
		const text = t(failed.count === 1 ? "failedOnce" : "failedOften", {n: failed.count, ago: ago(failed.last.ended), why: firstLine(failed.last.message) || "–"})
		parts.push(link(`#/jobs/${enc(failed.last.model_id)}`, user(/[.。!?！？]$/.test(text) ? text : text + t("stop"))))
	}
	// A service that stops has unloaded its models, so that none is missing.
	if (phase !== "draining" && models.missing) parts.push(link("#/models", t("missingModels", {n: models.missing})))
	else if (models.loaded || !failed.last && phase !== "draining") parts.push(t("serves", {n: models.loaded, workers: t("someWorkers", {n: workers.all})}))
	return parts.filter(Boolean).flatMap((part, index) => (index && language !== "zh" ? [" ", part] : [part]))
}

function overview() {
	let charts = null
	return {
		tab: "overview",
		load: async () => { charts = await get("charts") },
		render: () => [
			h("h1.lead", {key: "lead"}, sentence()),
			// The sentence names the phase already.
			notesOf("bad", "notready", summary.reasons.filter(reason => reason !== summary.phase)),
			notesOf("warn", "warning", summary.warnings),
			card("service", serviceFacts()),
			h("section.stack", {key: "charts"}, h("h2", t("hour")), hourCharts(charts)),
		],
	}
}
function serviceFacts() {
	const {disk, cache, memory, workers, started} = summary
	return facts(
		fact("phase", badge(phaseKind(), phaseWord())),
		fact("uptime", duration(nowSeconds() - started), t("since", {time: clock(started)})),
		fact("version", `mlpkit ${summary.version}`, `Python ${summary.python}`),
		fact("workers", t("of", {a: workers.ready, b: workers.all}), workers.restarts > 0 && t("restarts") + t("colon") + number(workers.restarts)),
		fact("memServer", bytes(memory.server), t("machine", {n: bytes(memory.available)})),
		disk && fact("disk", t("free", {n: bytes(disk.free)}), bar(1 - disk.free / disk.total, t("disk"))),
		fact("cache", t("of", {a: bytes(cache.used), b: bytes(cache.limit)})),
		summary.database && wideFact("database", summary.database),
		wideFact("store", summary.store))
}
// How much of something is used or done, from 0 to 1; null if that is not known.
const bar = (share, label) => h("progress", {label, max: 1, value: share?.toFixed(3)})
const progress = (name, said, share, label) => h("div.progress", h("div.line", name, h("span.soft", said)), bar(share, label || t("progress")))
function hourCharts({series, step, end}) {
	const count = series.requests.length
	if (count === 0) return h("section.card", empty("noSamples"))
	const points = (name, divisor = 1) => series[name].map((value, index) => [end - (count - 1 - index) * step, value == null ? null : value / divisor])
	const drawn = [
		["requests", [[t("all"), points("requests", step)], [t("failures"), points("failures", step)]], perSecond],
		["latency", [["p50", points("p50")], ["p99", points("p99")]], duration],
		["queue", [[t("predWait"), points("waiting")], [t("jobsRun"), points("jobs")], [t("jobsWait"), points("queue")]], number],
		["memServer", [["", points("memory")]], bytes],
	]
	return h("div.grid.broad", drawn.map(([name, lines, format]) => h("section.card", {key: name}, chart(t(name), lines, format, timeOfDay, [end - count * step, end].map(ago)))))
}

// A line chart. `series` are [name, points]; a point is [x, y], and y is null in a gap. `at` says what an x is, `ends` the first and the
// last. The figures above are the latest ones, or those under the pointer.
function chart(title, series, format, at, ends) {
	const all = series.flatMap(([, points]) => points)
	const xs = all.map(([x]) => x)
	const ys = all.map(([, y]) => y).filter(Number.isFinite)
	const [first, last] = [Math.min(...xs), Math.max(...xs)]
	const low = Math.min(0, ...ys)
	const high = Math.max(...ys, low) > low ? Math.max(...ys) : low + 1
	const across = x => ((x - first) / (last - first || 1) * 600).toFixed(1)
	const up = y => (100 - (y - low) / (high - low) * 96).toFixed(1)
	const lines = series.map(([, points], number) => {
		const isThere = index => points[index]?.[1] != null
		// A short line shows a point that stands alone.
		const line = points.map(([x, y], index) => (y == null ? "" :
			`${isThere(index - 1) ? "L" : "M"}${across(x)} ${up(y)}${isThere(index - 1) || isThere(index + 1) ? "" : "h4"}`))
		return h(`path.s${number}`, {d: line.join("")})
	})
	const shown = point => (point?.[1] == null ? "–" : format(point[1]))
	const latest = points => shown(points.findLast(([, y]) => y != null))
	const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best))
	const keys = x => [
		series.map(([name, points], number) => h("span", {key: number}, h(`i.s${number}`), name && [user(name), " "], h("b", x == null ? latest(points) : shown(nearest(points, x))))),
		x != null && h("span", {key: "at"}, at(x))]
	// The elements are looked up: those that were drawn first stay in the document.
	const point = (svg, x) => {
		svg.querySelector(".cursor").setAttribute("d", x == null ? "" : `M${across(x)} 0V100`)
		draw(svg.closest("figure").querySelector(".keys"), keys(x))
	}
	const pointermove = ({currentTarget: svg, clientX}) => {
		const {left, width} = svg.getBoundingClientRect()
		point(svg, nearest(series[0][1], first + (clientX - left) / width * (last - first))[0])
	}
	const pointerleave = ({currentTarget: svg}) => point(svg)
	const spoken = series.map(([name, points]) => t("chartOf", {
		title: [title, name].filter(Boolean).join(", "), now: latest(points), max: ys.length ? format(Math.max(...points.map(([, y]) => y ?? low))) : "–"}))
	return h("figure.chart", h("figcaption", h("b.user", title), h("span.keys", keys())),
		h("div.plot",
			h("svg", {viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img", label: spoken.join(". "), on: {pointermove, pointerleave}},
				h("path.rules", {d: "M0 4H600M0 52H600M0 100H600"}), lines, h("path.cursor")),
			ys.length > 0 && h("span.max", format(high))),
		h("div.axis", {"aria-hidden": "true"}, ends.map(end => h("span", end))))
}

// ---- jobs

const STATES = {init: "calm", training: "busy", completed: "good", error: "bad"}
const SPANS = {hour: 3600, day: 86400, week: 604800}
const SILENT = 60
const isCancelled = job => job.state === "error" && job.message === "cancelled"
const stateBadge = job => (isCancelled(job) ? badge("calm", "cancelled") : badge(STATES[job.state] ?? "calm", job.state))
const tookOf = job => (job.started == null ? null : (job.ended ?? nowSeconds()) - job.started)
// A badge if a running job has not reported for long.
function silent(job) {
	const seconds = job.state === "training" && job.reported != null ? nowSeconds() - job.reported : 0
	return seconds > SILENT && [" ", badge("warn", t("silent", {time: duration(seconds)}))]
}
const optionsOf = named => Object.keys(named).map(key => [key, t(key)])

function jobsView({start = 0, ...values}) {
	const filters = {algorithm: "", state: "", submitted: "", find: "", ...values}
	let found = null
	let typing = 0
	start = Number(start) || 0
	const change = (changes, place = 0) => {
		Object.assign(filters, changes)
		start = place
		keepInAddress("jobs", {...filters, start: start || ""})
	}
	const typed = find => { clearTimeout(typing); typing = setTimeout(() => change({find}), 250) }
	const filter = (name, options) => choice(name, filters[name], [["", t("all")], ...options], value => change({[name]: value}))
	return {
		tab: "jobs",
		load: async () => {
			const {submitted, ...rest} = filters
			const since = SPANS[submitted] && (nowSeconds() - SPANS[submitted]).toFixed(3)
			found = await get(`jobs${query({...rest, since, limit: PAGE, offset: start || ""})}`)
		},
		render: () => [
			heading("jobs", goTo("#/train", "train", ".main")),
			filtersOf(filters.find, typed, filter("algorithm", namesOf(summary.algorithms)), filter("state", optionsOf(STATES)), filter("submitted", optionsOf(SPANS))),
			list("jobs",
				found.jobs.length === 0
					? Object.values(filters).some(Boolean) ? empty("noMatch", null, button("clear", () => { location.hash = "#/jobs" })) : empty("noJobsYet")
					: [table("job state *progress submitted #took", found.jobs.map(jobRow)), pager(start, found.total, place => change({}, place))]),
		],
	}
}
function jobRow(job) {
	const took = tookOf(job)
	return [job.model_id,
		below(link(`#/jobs/${enc(job.model_id)}`, idOf(job.model_id)), user(job.algorithm)),
		stateBadge(job), rowProgress(job), when(job.created), took != null && duration(took)]
}
function rowProgress(job) {
	const {fraction = null, stage = "", metrics = {}} = job.progress ?? {}
	if (job.state === "error") return !isCancelled(job) && why(job.message)
	if (job.state === "init") return job.queue_position && h("span.soft", t("position", {n: job.queue_position}))
	if (job.state === "completed") {
		const figures = pairs({F1: job.evaluation?.f1, ...metrics}).filter(([, value]) => typeof value === "number").slice(0, 2)
		return h("span.soft.small.user", joined(...figures.map(([name, value]) => `${name} ${significant(value)}`)))
	}
	return progress(h("span", user(firstLine(stage)), silent(job)), fraction != null && percent(fraction), fraction)
}

// ---- one job

// Lines that are shown, and characters of a line.
const MOST = 2000
const LOG_LINE = /^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d)\S* (\w+) +\[[^\]]*\] ([^|]*)\| (.*)$/

// The log of a job in a card that stays: lines are added at its end, and it scrolls there unless the reader switches that off.
function logOf(id) {
	const lines = h("div.log", {role: "log", tabindex: "0", label: t("log")}, soft(t("noLog")))
	const settle = () => { if (follows.checked) lines.scrollTop = lines.scrollHeight }
	const follows = h("input", {type: "checkbox", checked: true, on: {change: settle}})
	const card = h("section.card", {key: "log", keep: true}, h("div.title", h("h2", t("log")), h("label.check", follows, h("span", t("follow")))), lines)
	const decoder = new TextDecoder()
	let end = null
	let rest = ""
	let isEmpty = true
	async function load() {
		const {response} = await ask(jobPath(id, `/log${end == null ? "?tail=1000" : `?from=${end}`}`))
		const next = response.headers.has("x-log-end") ? Number(response.headers.get("x-log-end")) : null
		const content = new Uint8Array(await response.arrayBuffer())
		// A shorter log is a new one.
		if (end != null && next < end) return route()
		end = next
		if (content.length === 0) return
		if (isEmpty || end == null) draw(lines)
		isEmpty = false
		const fresh = (rest + decoder.decode(content, {stream: true})).split("\n")
		rest = fresh.pop().slice(0, MOST)
		lines.append(...fresh.slice(-MOST).map(logLine))
		while (lines.childElementCount > MOST) lines.firstChild.remove()
		settle()
	}
	return {card, load, settle}
}
function logLine(line) {
	const cut = clean(line, MOST)
	const [, time, level, source, text] = LOG_LINE.exec(cut) ?? []
	return time ? h(`div.${level}`, {title: source.trim()}, h("time", time), text) : h("div", cut)
}

function jobView(id) {
	let job = null
	let report = null
	const log = logOf(id)
	const end = (name, soft) => confirmed(name, id, async () => { await post("cancel", {model_id: id, soft}); say("done"); refresh() })
	return {
		tab: "jobs",
		title: shortId(id),
		load: async () => {
			job = await get(jobPath(id))
			if (job.ended && job.evaluation) report ??= await reportOf(id)
			await log.load()
		},
		render: () => {
			const isRunning = job.state === "training"
			requestAnimationFrame(log.settle)
			return [
				h("div.stack", {key: "head"}, backTo("jobs"),
					h("div.head", h("div", h("h1", user(job.algorithm), " ", stateBadge(job)), h("span.mono.soft.user", job.model_id)),
						h("div.actions",
							isRunning && [button("showStack", () => showStack(id)), button("end", () => end("end", true))],
							!job.ended && button("cancel", () => end("cancel", false), {class: "danger"}),
							job.state === "completed" && button("load", () => attempt(async () => { await move("load", job); location.hash = "#/models" })),
							goTo(`#/train?from=${enc(id)}`, "trainAgain")))),
				job.state === "error" && !isCancelled(job) && note("bad", {key: "error"}, user(job.message)),
				!job.ended && card("progress", progressOf(job)),
				card("facts", jobFacts(job)),
				metricsCard(job),
				report && card("evaluation", evaluationOf(report, id)),
				log.card,
				card("asked", h("div.stack", ["parameters", "data", "extend"].map(name => code(pretty(job[name]), name)))),
			]
		},
	}
}
function progressOf(job) {
	if (job.state === "init") {
		const seconds = (job.estimated_start ?? 0) - nowSeconds()
		const wait = seconds > 1 && t("estimate", {time: duration(seconds)})
		return [h("p", job.queue_position ? t("position", {n: job.queue_position}) : t("init"), wait && h("span.soft", ` · ${wait}`)), job.message && soft(user(job.message))]
	}
	const now = job.progress ?? {}
	const parts = now.bars?.length ? now.bars : [now]
	const said = ({done, total, fraction, remaining}) => joined(
		done != null && (total != null ? t("of", {a: done, b: total}) : number(done)), fraction != null && percent(fraction),
		remaining >= 1 && !silent(job) && t("left", {time: duration(remaining)}))
	return h("div.stack",
		parts.map(part => progress(h("strong", user(firstLine(part.stage || t("training")))), said(part), part.fraction, part.stage)),
		h("div.line", now.message && h("p", user(now.message)), small(t("lastReport"), t("colon"), when(job.reported), silent(job))))
}
function jobFacts(job) {
	const moment = (name, time) => time != null && fact(name, when(time), clock(time))
	return facts(
		moment("submitted", job.created), moment("started", job.started), moment("ended", job.ended),
		job.started != null && fact("took", duration(tookOf(job))),
		job.attempt > 0 && fact("attempt", number(job.attempt)),
		job.pid != null && fact("pid", `pid ${job.pid}`),
		job.memory != null && fact("memory", bytes(job.memory)),
		job.model_path && wideFact("model_path", job.model_path),
		wideFact("uuid", job.uuid))
}
// Charts of the metrics: those that differ only by train, val or test share one.
function metricsCard(job) {
	const groups = new Map()
	for (const [name, points] of pairs(job.curves ?? {})) {
		if (points.length < 2) continue
		const group = name.replace(/^(train|training|val|valid|validation|test|eval)[_/ .-]/, "").slice(0, 60)
		const series = groups.get(group) ?? []
		if (series.length < 4) groups.set(group, [...series, [name, points]])
	}
	const drawn = new Set(["evaluation", ...[...groups.values()].flat().map(([name]) => name)])
	const others = pairs(job.progress?.metrics ?? {}).filter(([name]) => !drawn.has(name))
	if (groups.size + others.length === 0) return null
	return card("metrics", h("div.stack",
		groups.size > 0 && h("div.grid", [...groups].map(([name, series]) => {
			const seconds = series.flatMap(([, points]) => points.map(([second]) => second))
			return h("div", {key: name}, chart(name, series.length > 1 ? series : [["", series[0][1]]], significant, duration, [Math.min(...seconds), Math.max(...seconds)].map(duration)))
		})),
		others.length > 0 && facts(others.slice(0, 60).map(([name, value]) => ownFact(name, value)))))
}
// A figure of the author's own.
const ownFact = (name, value) => fact(user(name), user(typeof value === "number" ? significant(value) : firstLine(isString(value) ? value : JSON.stringify(value))))

async function showStack(id) {
	await attempt(async () => {
		const {response} = await ask(jobPath(id, "/stack"))
		const text = await response.text()
		open("stackTitle", close => [soft(t("stackHelp")), code(text.trim()), acts(button("again", () => { close(); showStack(id) }), button("close", close, {class: "main", autofocus: true}))], "wide")
	})
}
// Loads or unloads a model.
async function move(route, {model_id, algorithm, model_path}) {
	await post(platform(route), {model_id, algorithm, model_path: model_path || undefined}, 10 * MINUTES)
	say("done")
	refresh()
}

// ---- evaluations

const reportOf = async id => get(jobPath(id, "/evaluation")).catch(error => { if (!error.status) throw error; return {error: error.message} })
// The figures of an evaluation: name, value, how it is written, whether more (1) or less (-1) is better, and what is shown for the name.
const figuresOf = report => [
	["rows", report.rows, number, 0], [report.average ?? "F1", report.f1, share, 1],
	["accuracy", report.accuracy, share, 1], ["exact", report.exact_match, share, 1], ["chrF", report.chrf, share, 1],
	["purity", report.purity, share, 1], ["rand", report.adjusted_rand, share, 1],
	["perRow", report.milliseconds?.p50 / 1000, duration, -1],
	...pairs(report.metrics ?? {}).map(([name, value]) => [` ${name}`, typeof value === "number" ? value : null, significant, 0, user(name)]),
].filter(([, value]) => Number.isFinite(value))

// An evaluation: its figures, what to know about them, and tables of what is right and wrong.
function evaluationOf(report, id) {
	const {failed, spans, labels = {}, unknown_labels: unknown, errors = [], confusions = [], thresholds = []} = report
	const said = text => (text == null ? "–" : user(clean(text, 200)))
	const worst = pairs(labels).sort(([, a], [, b]) => a.f1 - b.f1 || b.support - a.support).slice(0, 100)
	const part = (name, columns, rows, help) => rows.length > 0 && section(name, help, table(columns, rows.map((cells, index) => [index, ...cells])))
	return h("div.stack",
		report.error && because("bad", "noResult", report.error),
		failed?.rows > 0 && note("warn", t("failedRows", {n: failed.rows, line: failed.line ?? 0}), t("colon"), user(firstLine(failed.message))),
		report.in_both > 0 && note("warn", t("inBoth", {n: report.in_both})),
		pairs(unknown ?? {}).length > 0 && because("warn", "unknownLabels", firstLine(Object.keys(unknown).join(", "))),
		report.rows != null && facts(
			report.source && fact("source", mono(report.source)),
			figuresOf(report).map(([name, value, write, , label = name]) => fact(label, write(value), name === "perRow" && `p99 ${duration(report.milliseconds.p99 / 1000)}`)),
			pairs(report.metrics ?? {}).map(([name, value]) => typeof value !== "number" && ownFact(name, value))),
		!report.error && h("p", link(`#/compare?a=${enc(id)}`, "compare")),
		spans && section("spans", facts(pairs(spans).map(([name, count]) => fact(name, number(count))))),
		part("labels", "label #precision #recall #F1 #support", worst.map(([name, value]) => [user(name), share(value.precision), share(value.recall), share(value.f1), number(value.support ?? 0)])),
		h("div.grid.broad",
			part("confusions", ":wanted :got #count", confusions.map(({wanted, got, count}) => [said(wanted), said(got), number(count)])),
			part("thresholds", "#atLeast #answered #correct", thresholds.map(({threshold, answered, right}) => [number(threshold), number(answered), answered ? `${number(right / answered * 100, 1, 1)} %` : "–"]))),
		part("errors", "#line *sentence :wanted :got #score", errors.map(error => [error.line, user(error.sentence), said(error.wanted), said(error.got), error.score == null ? "–" : number(error.score, 1)]), soft(t("advice"))))
}

// Two evaluations side by side; the second one is measured against the first.
function compareView({a, b}) {
	const reports = {}
	let jobs = []
	const change = changes => { ({a, b} = {a, b, ...changes}); keepInAddress("compare", {a, b}) }
	// The newest other evaluated job of the same algorithm.
	const beside = ({model_id: id, algorithm} = {}) => jobs.find(job => job.model_id !== id && job.algorithm === algorithm)?.model_id
	const jobOf = id => jobs.find(job => job.model_id === id)
	return {
		tab: "models",
		title: "compare",
		load: async () => {
			if (jobs.length === 0) jobs = (await get("jobs?state=completed&limit=1000")).jobs.filter(job => job.evaluation && !job.evaluation.error)
			b ||= a ? beside(jobOf(a)) : jobs.find(beside)?.model_id
			a ||= beside(jobOf(b))
			for (const id of [a, b]) if (id) reports[id] ??= await reportOf(id)
		},
		render: () => {
			const [old, fresh] = [reports[a], reports[b]]
			const problem = old?.error || fresh?.error
			const options = jobs.map(job => [job.model_id, `${job.algorithm} · ${shortId(job.model_id)} · ${ago(job.created)}`])
			const labels = report => pairs(report.labels ?? {}).map(([name, {f1}]) => [name, f1, share, 1, user(name)])
			return [headingBelow("models", "compare"),
				!old || !fresh ? list("compare", empty("noEvaluations", "noEvaluationsHelp")) : [
					h("div.pair", {key: "pickers"}, choice("A", a, options, id => change({a: id})), choice("B", b, options, id => change({b: id}))),
					problem ? because("bad", "noResult", problem) : [
						(old.source !== fresh.source || old.rows !== fresh.rows) && note("warn", {key: "other"}, t("otherRows")),
						titled("metrics", comparison("figure", figuresOf(old), figuresOf(fresh))),
						fresh.labels && titled("f1OfLabels", comparison("label", labels(old), labels(fresh)))],
				]]
		},
	}
}
// A table of two lists of figures. Each difference says if it is better or worse.
function comparison(what, old, fresh) {
	const names = new Map([...old, ...fresh].map(figure => [figure[0], figure]))
	return table(`${what} #A #B #difference`, [...names].slice(0, 500).map(([name, [, , write, better, label]]) => {
		const [x, y] = [old, fresh].map(figures => figures.find(figure => figure[0] === name)?.[1])
		const isSame = x == null || y == null || write(x) === write(y)
		const verdict = better && ((y - x) * better > 0 ? "better" : "worse")
		return [name, label ?? t(name), x == null ? "–" : write(x), y == null ? "–" : write(y),
			isSame ? "–" : h(`span.${verdict || "soft"}`, y > x ? "+" : "−", write(Math.abs(y - x)), verdict && ` ${t(verdict)}`)]
	}))
}

// ---- forms of schemas

const describe = async () => { algorithms ??= await get("algorithms") }
const trainable = () => algorithms.algorithms.filter(({hooks}) => hooks.includes("train"))

// A schema without references and without the null of an optional field.
function resolve(schema, depth = 0) {
	if (!schema || depth > 20) return {}
	if (schema.$ref) { const {$ref, ...own} = schema; return {...resolve(algorithms.schemas[$ref.split("/").pop()], depth + 1), ...own} }
	const choices = schema.anyOf ?? schema.oneOf
	if (!choices) return schema
	const rest = choices.map(choice => resolve(choice, depth + 1)).filter(choice => choice.type !== "null")
	if (rest.length === 1) return {...rest[0], ...schema, anyOf: undefined, oneOf: undefined, nullable: rest.length < choices.length}
	return {...schema, anyOf: rest, oneOf: undefined}
}
const typeOf = value => (value === null ? "null" : Array.isArray(value) ? "array" : Number.isInteger(value) ? "integer" : typeof value)

// What is wrong with a value, as a sentence, or "".
function problemOf(raw, value, depth = 0) {
	const schema = resolve(raw)
	if (depth > 12 || (value === null && schema.nullable)) return ""
	const inner = (choice, item = value) => problemOf(choice, item, depth + 1)
	if (schema.anyOf) { const found = schema.anyOf.map(choice => inner(choice)); return found.every(Boolean) ? found[0] : "" }
	const allowed = schema.const !== undefined ? [schema.const] : schema.enum
	if (allowed && !allowed.includes(value)) return t("oneOf", {list: allowed.join(", ")})
	const type = typeOf(value)
	const wanted = [schema.type ?? []].flat()
	if (wanted.length && !wanted.includes(type) && !(type === "integer" && wanted.includes("number"))) return t("wrongType", {what: wanted.join(", ")})
	const measured = {string: "Length", array: "Items"}[type]
	const size = measured ? [...value].length : value
	const rules = [
		[schema[measured ? `min${measured}` : "minimum"], "≥", limit => size >= limit], [schema[measured ? `max${measured}` : "maximum"], "≤", limit => size <= limit],
		[schema.exclusiveMinimum, ">", limit => size > limit], [schema.exclusiveMaximum, "<", limit => size < limit],
	]
	const broken = rules.find(([limit, , holds]) => limit != null && !holds(limit))
	if (broken) return t(measured ? "wrongLength" : "wrongSize", {rule: `${broken[1]} ${broken[0]}`})
	if (type === "array" && schema.items) return value.slice(0, 1000).map(item => inner(schema.items, item)).find(Boolean) ?? ""
	if (type !== "object") return ""
	const missing = (schema.required ?? []).find(name => !(name in value))
	if (missing != null) return t("lacks", {name: missing})
	for (const [name, property] of pairs(schema.properties ?? {})) {
		const wrong = name in value && inner(property, value[name])
		if (wrong) return `${name}: ${wrong}`
	}
	return ""
}

function parsed(text) {
	try { return JSON.parse(text) } catch (error) { throw new Error(t("notJson", {why: error.message})) }
}

let ids = 0
// An input of one field. `read` gives its value, undefined for none, and shows what is wrong. `isWhole`: it is a form's only one.
function fieldOf(name, raw, start, isNeeded, change, isWhole) {
	const schema = resolve(raw)
	const id = `f${(ids += 1)}`
	const type = [schema.type ?? ""].flat().find(found => found !== "null") ?? ""
	const isNumber = type === "number" || type === "integer"
	const isCheck = type === "boolean"
	const isLines = type === "array" && resolve(schema.items).type === "string"
	const isText = type === "string" && !schema.enum
	const isJson = !(schema.enum || isNumber || isCheck || isLines || isText)
	const value = start ?? schema.default
	const shown = value == null ? "" : isLines ? value.join("\n") : isJson ? pretty(value) : String(value)
	const input = () => { read(); change() }
	const props = {value: shown, on: {input}}
	const node = schema.enum ? select(name, JSON.stringify(value), [...(isNeeded ? [] : [["", "–"]]), ...schema.enum.map(choice => [JSON.stringify(choice), String(choice)])], input)
		: isCheck ? entry(name, {type: "checkbox", checked: value === true, on: {input}})
		: isNumber ? entry(name, {...props, inputmode: "decimal"})
		: h(isJson ? "textarea.code" : "textarea", {...props, name, spellcheck: "false"})
	node.setAttribute("aria-describedby", `${id}h ${id}w`)
	const wrong = h("p.wrong", {id: `${id}w`, "aria-live": "polite"})
	const parse = text => {
		if (isCheck) return node.checked
		if (isLines) text = text.split("\n").filter(line => line.trim())
		if (text.length === 0 && !isNeeded) return undefined
		if (isLines || isText) return text
		if (text.trim() === "") throw new Error(t("needed"))
		if (schema.enum || isJson) return parsed(text)
		if (Number.isNaN(Number(text))) throw new Error(t("notNumber"))
		return Number(text)
	}
	const read = () => {
		let problem = ""
		let found
		try { found = parse(node.value); problem = found === undefined ? "" : problemOf(raw, found) } catch (error) { problem = error.message }
		draw(wrong, problem)
		node.setAttribute("aria-invalid", String(Boolean(problem)))
		return {value: found, problem, input: node}
	}
	const label = h(isWhole ? "span.hidden" : "span", user(name), !isNeeded && h("em", ` ${t("optional")}`))
	const help = h("p.help.user", {id: `${id}h`}, joined(schema.description, isLines ? t("perLine") : isJson && t("asJson")))
	return {name, read, isSmall: Boolean(isNumber || isCheck || schema.enum),
		node: h("div.field", isCheck ? h("label.check", node, label) : h("label", label, node), help, wrong)}
}

// A form of an object's schema. `read` gives the value and the first wrong input.
function formOf(name, raw, start, change) {
	const schema = resolve(raw)
	const properties = pairs(schema.properties ?? {})
	const isWhole = properties.length === 0
	const fields = isWhole ? [fieldOf(t(name), {...schema, type: "object"}, start, true, change, true)] : properties.map(([name, inner]) => fieldOf(name, inner, start?.[name], schema.required?.includes(name), change))
	const [small, large] = [true, false].map(isSmall => fields.filter(made => made.isSmall === isSmall).map(({node}) => node))
	const read = () => {
		const found = fields.map(made => made.read())
		const values = fields.map(({name}, index) => [name, found[index].value]).filter(([, value]) => value !== undefined)
		return {value: isWhole ? found[0].value : Object.fromEntries(values), wrong: found.find(({problem}) => problem)?.input}
	}
	return {node: h("fieldset.form", h("legend", t(name)), large, small.length > 0 && h("div.pair", small)), read}
}

function trainView(values) {
	let form = null
	let from = null
	let chosen = values.algorithm
	const build = () => {
		const able = trainable()
		const algorithm = able.find(({name}) => name === chosen) ?? able[0]
		if (!algorithm) return list("train", empty("cannotTrain"))
		chosen = algorithm.name
		// What the job was asked that is trained again.
		const before = from?.algorithm === chosen ? from : {}
		const parameters = formOf("parameters", algorithm.parameters, before.parameters ?? {}, () => {})
		const place = entry("location", {value: before.data?.location ?? values.data ?? ""})
		const path = entry("model_path", {value: before.model_path ?? ""})
		const {remote_ip: _, ...extend} = before.extend ?? {}
		const more = fieldOf("extend", {type: "object", description: t("extendHelp")}, Object.keys(extend).length ? extend : undefined, false, () => {})
		const submit = async () => {
			const asked = parameters.read()
			const further = more.read()
			const wrong = asked.wrong ?? (further.problem && further.input)
			if (wrong) return wrong.focus()
			const {location: _, ...data} = before.data ?? {}
			if (place.value.trim()) data.location = place.value.trim()
			const {model_id: id} = await post(platform("train"), {algorithm: chosen, model_path: path.value.trim(), data, parameter: asked.value ?? {}, extend: further.value ?? {}})
			location.hash = `#/jobs/${enc(id)}`
		}
		return h("section.card", {key: chosen, keep: true}, formFor("startTrain", submit, [
			choice("algorithm", chosen, namesOf(able), name => { chosen = name; form = build(); drawMain(); form.querySelector("select").focus() }),
			algorithm.takes_data && h("div.field", field("location", place), h("p.help", t("locationHelp", {columns: algorithm.columns}), " ", link(`#/data${query({algorithm: chosen})}`, "putFile"))),
			parameters.node,
			h("details", h("summary", t("extend"), t("comma"), t("model_path")), h("div.form", more.node, h("div.field", field("model_path", path), h("p.help", t("pathHelp")))))]))
	}
	return {
		tab: "jobs",
		title: "train",
		load: async () => {
			if (form) return
			await describe()
			if (values.from) { from = await get(jobPath(values.from)); chosen = from.algorithm }
		},
		render: () => [headingBelow("jobs", "train"), form ??= build()],
	}
}

// ---- data

// The file that was put into the data bucket last, which stays while other views are shown, and what the next one is checked for.
let upload = null
let checkedFor = ""
const takers = () => trainable().filter(algorithm => algorithm.takes_data)

// Sends a file, which the service checks for an algorithm before it stores it. The one before is stopped.
async function send(file) {
	location.hash = "#/data"
	if (!file || !summary?.upload_size) return
	upload?.stop.abort()
	const stop = new AbortController()
	const current = upload = {file, stop, share: 0, start: 0, isRunning: true}
	const sent = share => { current.share = share; drawMain() }
	try {
		await describe()
		current.algorithm = checkedFor ||= takers()[0]?.name
		drawMain()
		if (file.size > summary.upload_size) throw new Failure(t("tooLarge", {n: bytes(summary.upload_size)}))
		// A folder of its own, so that it replaces no other file.
		const folder = new Date().toISOString().replace(/\D/g, "")
		const path = `data/uploads/${folder}/${enc(file.name)}${query({algorithm: current.algorithm})}`
		current.stored = (await ask(path, {body: file, signal: stop.signal, sent})).data
		current.report = current.stored.report
	} catch (error) {
		Object.assign(current, stop.signal.aborted ? {isStopped: true} : {problem: expected(error).message, report: error.report})
	} finally { current.isRunning = false }
	drawMain()
}
// A file that is dropped anywhere on the page is sent; without this, the browser would show it instead of the page.
for (const type of ["dragover", "drop"]) addEventListener(type, event => {
	const {files, types} = event.dataTransfer
	if (!types.includes("Files")) return
	event.preventDefault()
	if (type === "drop") send(files[0])
})

function dataView({algorithm}) {
	checkedFor = algorithm ?? checkedFor
	const change = ({target}) => { send(target.files[0]); target.value = "" }
	return {
		tab: "data",
		load: describe,
		render: () => {
			const able = takers()
			const missing = !summary.upload_size ? empty("uploadsOff", "uploadsOffHelp") : able.length === 0 && empty("cannotTrain")
			if (missing) return [heading("data"), list("data", missing)]
			const {name, columns} = able.find(({name}) => name === checkedFor) ?? able[0]
			checkedFor = name
			return [heading("data"),
				h("div.card.form", {key: "form"},
					choice("algorithm", name, namesOf(able), name => { checkedFor = name; drawMain() }),
					h("label.drop", h("strong", t("drop")), h("span", t("dropHelp", {columns, n: bytes(summary.upload_size)})),
						h("input.hidden", {type: "file", name: "file", label: t("drop"), on: {change}}))),
				upload && card("result", uploadResult()),
			]
		},
	}
}
function uploadResult() {
	const {file, stop, share, isRunning, isStopped, stored, problem, report, algorithm} = upload
	const step = share < 1 ? "uploading" : "checking"
	return h("div.stack", {"aria-live": "polite"},
		h("p", h("strong", user(file.name)), h("span.soft", ` · ${bytes(file.size)}`)),
		// The bar tells listeners how far it is, so that not each percent is read out.
		isRunning && [progress(busy(step), share < 1 && h("span", {"aria-hidden": "true"}, percent(share)), share < 1 ? share : null, t(step)),
			acts(button("stopUpload", () => stop.abort()))],
		isStopped && note("warn", t("stopped")),
		problem && because("bad", "refused", problem),
		stored && [note("good", t("fileStored"), t("colon"), mono(stored.location)), acts(goTo(`#/train${query({algorithm, data: stored.location})}`, "trainOn", ".main"))],
		report && reportParts(report))
}
// What the check of a file found, in full.
function reportParts(report) {
	const {findings, labels, errors, warnings} = report
	const sorted = [...findings].sort((a, b) => (a.severity > b.severity) - (a.severity < b.severity))
	const counted = pairs(labels).sort(([, a], [, b]) => b.positive - a.positive)
	return [
		h("p", t("found", report)),
		findings.length > 0 && section("findings",
			table("severity #line #column *message", sorted.slice(upload.start, upload.start + PAGE).map(({severity, line, column, message}, index) => [index,
				severity === "error" ? badge("bad", "mistake") : badge("warn", "warning"), line ?? "–", column ?? "–", user(message)])),
			pager(upload.start, sorted.length, start => { upload.start = start; drawMain() }),
			errors + warnings > findings.length && small(t("notListed", {n: errors + warnings - findings.length}))),
		counted.length > 0 && section("labels",
			table("label #positive #negative #line", counted.slice(0, 100).map(([name, {positive, negative, line}]) => [name, user(name), number(positive), number(negative), line])),
			counted.length > 100 && small(t("notListed", {n: counted.length - 100}))),
	]
}

// ---- models

// In this order they are listed; a model with a problem is first.
const MODEL_STATES = {missing: "bad", loading: "busy", unloading: "busy", loaded: "good", unloaded: "calm", evicted: "calm"}
const rank = ({state, problem}) => (problem ? 0 : Object.keys(MODEL_STATES).indexOf(state))
const modelBadge = state => badge(MODEL_STATES[state] ?? "calm", state === "loading" ? "loadingState" : state)
const unload = model => confirmed("unload", model.model_id, () => move("unload", model))
const load = model => attempt(() => move("load", model))

function modelsView() {
	let models = []
	let aliases = []
	const stored = []
	let next = null
	let problem = {}
	let find = ""
	let start = 0
	let loadedAt = 0
	const more = async () => {
		try {
			const found = await get(`models${query({stored: 1, limit: PAGE, after: next})}`)
			stored.push(...found.models);
			({next} = found)
			problem = {}
		} catch (error) { problem = expected(error) }
		drawMain()
	}
	more()
	return {
		tab: "models",
		load: async () => {
			const {models: present, missing, evicted} = await get("models")
			const time = performance.now() / 1000
			const before = new Map(models.map(model => [model.model_id, model.predictions]))
			const rate = ({model_id: id, predictions}) => Math.max(0, predictions - (before.get(id) ?? predictions)) / (time - loadedAt) || 0
			models = [
				// In cluster mode, what is missing is there too.
				...present.filter(({state}) => state !== "unloaded").map(model => ({...model, rate: rate(model)})),
				...missing.map(model => ({...model, state: "missing", problem: model.reason})), ...evicted.map(model => ({...model, state: "evicted"}))]
			loadedAt = time;
			({aliases} = await get("aliases"))
			// The service answers again, or has got its token.
			if ([0, 401].includes(problem.status)) { problem = {}; more() }
		},
		render: () => {
			const listed = models.filter(model => `${model.model_id} ${model.algorithm}`.toLowerCase().includes(find.toLowerCase())).sort((a, b) => rank(a) - rank(b))
			const states = new Map(models.map(model => [model.model_id, model.state]))
			return [
				heading("models", models.length + stored.length > 0 && button("setAlias", () => aliasDialog()), goTo("#/compare", "compare"), button("loadOne", loadDialog, {class: "main"})),
				models.length > 8 && filtersOf(find, text => { find = text; start = 0; drawMain() }),
				list("models", models.length === 0 ? empty("noModels", "noModelsHelp", goTo("#/jobs?state=completed", "jobs")) : listed.length === 0 ? empty("noMatch") : [
					table("model state #rate #perCall #batch #waiting #failures #memory #*actions", listed.slice(start, start + PAGE).map(modelRow)),
					pager(start, listed.length, place => { start = place; drawMain() })]),
				aliases.length > 0 && titled("aliases", table("alias *model state :since2 #*actions", aliases.map(alias =>
					[alias.name, mono(alias.name), mono(alias.model_id), modelBadge(alias.state), when(alias.since), acts(does("move", alias.name, () => aliasDialog(alias)))]))),
				problem.message && because("warn", "stored", problem.message),
				stored.length > 0 && titled("stored", table("model state :created #size #f1 #*actions", stored.map(model => storedRow(model, states.get(model.model_id)))),
					next && h("div.pager", {key: "more"}, button("more", more, {class: "mini"}))),
			]
		},
	}
}
function storedRow(model, state = "unloaded") {
	const {f1, error} = model.evaluation ?? {}
	return [model.model_id,
		below(mono(model.model_id), user(model.algorithm), model.aliases.map(alias => [" · ", mono(alias)])),
		[modelBadge(state), why(model.below_gate)], when(model.created), bytes(model.size), f1 != null ? share(f1) : error ? t("noResult") : "–",
		acts(state === "unloaded" && does("load", model.model_id, () => load(model)))]
}
// A worker, and its node if it is on a cluster.
const placed = (what, node) => user(node ? t("onNode", {what, node}) : what)
function modelRow(model) {
	const {workers = [], nodes = [], model_id: id, state, rate = 0, predictions = 0, batches = 0, waiting = 0, in_flight: running = 0, problem} = model
	const isLoaded = state === "loaded"
	const isGone = ["missing", "evicted"].includes(state)
	return [id,
		below(idOf(id), user(model.algorithm), workers.length > 0 && ` · ${t("worker")} `, workers.map((worker, place) => [place > 0 && ", ", placed(worker, nodes[place])]), isLoaded && model.lazy && ` · ${t("lazily")}`),
		[isLoaded && problem ? badge("warn", state) : modelBadge(state), state === "evicted" && small(t("evictedWhy")), why(problem)],
		...isGone ? Array(6).fill("–") : [
			below(perSecond(rate), t("total", {n: predictions})), model.p50 == null ? "–" : below(duration(model.p50), `p99 ${duration(model.p99)}`),
			batches ? number(predictions / batches, 1) : "–", number(waiting + running), number(model.failures), model.memory ? bytes(model.memory) : "–"],
		acts(isLoaded && goTo(`#/tryit?model=${enc(id)}`, "tryit", "", `${t("tryit")}: ${id}`), isGone && does("load", id, () => load(model)), (isLoaded || isGone) && does("unload", id, () => unload(model), "danger"))]
}
// Asks for the fields of a request about one model.
function modelDialog(name, yes, algorithm, fields, act) {
	const inputs = pairs(fields).map(([name, props]) => field(name, entry(name, {required: true, ...props})))
	formDialog(name, yes, [choice("algorithm", algorithm, namesOf(summary.algorithms)), inputs], act)
}
const loadDialog = () => modelDialog("loadOne", "load", null, {model_id: {maxlength: 64, autofocus: true}, model_path: {maxlength: 1024, required: false, placeholder: t("optional")}}, model => move("load", model))
function aliasDialog(old) {
	const act = async values => { await post("alias", values, 10 * MINUTES); say("done"); refresh() }
	modelDialog("setAlias", old ? "move" : "setAlias", old?.algorithm, {alias: {maxlength: 31, autofocus: !old, value: old?.alias ?? ""}, model_id: {maxlength: 64, autofocus: old}}, act)
}

function workersView() {
	let workers = []
	return {
		tab: "workers",
		load: async () => { ({workers} = await get("workers")) },
		render: () => {
			const most = Math.max(1, ...workers.map(worker => worker.memory ?? 0))
			return [heading("workers"), list("workers", table("worker state memory *models :started #restarts", workers.map(worker => workerRow(worker, most))))]
		},
	}
}
function workerRow({index, pid, node, ready, isolated, devices, problem, memory, models, since, restarts}, most) {
	const held = models.slice(0, 500).map(id => h("div", idOf(id)))
	return [index,
		below(h("strong", `${t("worker")} ${index}`), placed(pid != null ? `pid ${pid}` : "–", node), isolated && ` · ${t("isolated")}`, devices.map(id => ` · GPU ${id}`)),
		[badge(ready ? "good" : "bad", ready ? "ready" : "down"), why(problem)],
		[bytes(memory), memory != null && bar(memory / most, t("memory"))],
		held.length === 0 ? "–" : held.length <= 3 ? held : h("details", h("summary", t("held", {n: models.length})), held),
		when(since), number(restarts)]
}

// ---- try it

const EVENTS = "text/event-stream"

function tryView(values) {
	let models = []
	let chosen = values.model ?? ""
	let form = null
	const build = () => {
		const model = models.find(({model_id: id}) => id === chosen)
		const {kind, examples, streams, ...types} = algorithms.algorithms.find(({name}) => name === model.algorithm)
		const answer = h("div.stack", {"aria-live": "polite"}, empty("noAnswer"))
		const snippets = h("div.stack")
		const inputs = h("div")
		const changed = () => drawSnippets(snippets, request(), streams)
		const params = formOf("params", types.params, resolve(types.params).properties ? undefined : {}, changed)
		let features
		const fill = number => {
			features = formOf("features", types.features, examples[number - 1], changed)
			inputs.replaceChildren(features.node)
			changed()
		}
		const request = () => {
			const options = params.read().value ?? {}
			return {model_id: chosen, features: features.read().value, ...(Object.keys(options).length > 0 && {params: options})}
		}
		const submit = async () => {
			const wrong = features.read().wrong ?? params.read().wrong
			if (wrong) return wrong.focus()
			const body = request()
			leaving = new AbortController()
			draw(answer, busy("sending"))
			const began = performance.now()
			const took = () => t("tookMs", {n: duration((performance.now() - began) / 1000)})
			const parts = []
			try {
				const {data, response} = await ask(platform("predict"), {method: "POST", body, signal: leaving.signal, headers: streams ? {Accept: EVENTS} : {}})
				const timing = response.headers.get("server-timing")
				const show = (drawn, raw, isDone) => draw(answer, drawn ?? code(pretty(raw)), !isDone ? busy("sending") : [
					small(joined(took(), ...(timing?.split(",").map(timingOf) ?? []))), drawn && h("details", h("summary", t("asJson")), code(pretty(raw)))])
				if (data) return show(drawnAnswer(kind, data.predictions, body), data.predictions, true)
				let end = null
				for await (const [name, content] of eventsOf(response)) {
					if (name === "part") parts.push(JSON.parse(content))
					if (name === "end") end = JSON.parse(content)
					show(parts.every(isString) ? marked(parts.join("")) : null, parts, end)
				}
				if (end?.status !== "success") throw new Failure(end?.message ?? t("gone"))
			} catch (error) { answer.querySelector("[aria-busy]")?.remove(); refuse(answer, error) }
		}
		fill(1)
		const several = examples.length > 1 && choice("example", "1", examples.map((_, index) => String(index + 1)), fill)
		form = h("div.two", {key: chosen, keep: true},
			h("section.card", formFor("send", submit, [several, inputs, params.node])),
			h("div.stack", card("answer", answer), card("request", snippets)))
	}
	return {
		tab: "tryit",
		load: async () => {
			await describe()
			models = (await get("models")).models.filter(model => model.state === "loaded")
		},
		render: () => {
			const head = heading("tryit")
			if (models.length === 0) return [head, list("tryit", empty("nothingToTry", "noModelsHelp", goTo("#/models", "models")))]
			if (!models.some(({model_id: id}) => id === chosen)) { chosen = models[0].model_id; form = null }
			if (!form) build()
			const pick = model => { leaving?.abort(); chosen = values.model = model; form = null; drawMain(); keepInAddress("tryit", {model}) }
			return [head, values.model && values.model !== chosen && note("warn", {key: "other"}, mono(values.model), t("colon"), t("unloaded")),
				h("div.pair", {key: "picker"}, choice("model", chosen, models.map(model => [model.model_id, `${model.algorithm} · ${shortId(model.model_id)}`]), pick)), form]
		},
	}
}
function timingOf(part) {
	const [name, milliseconds] = part.trim().split(";dur=")
	return milliseconds ? `${name} ${duration(Number(milliseconds) / 1000)}` : name
}
// The same request for a terminal and for a script.
function drawSnippets(place, body, streams) {
	const isSafe = Boolean(token())
	const curl = ["curl", "  -H 'Content-Type: application/json'", streams && `  -N -H 'Accept: ${EVENTS}'`, isSafe && '  -H "Authorization: Bearer $MLPKIT_TOKEN"',
		`  -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`, `  ${new URL(ROOT + platform("predict"), location.origin).href}`].filter(Boolean).join(" \\\n")
	const client = [pythonOf(location.origin + ROOT.replace(/\/$/, "")), summary.prefix !== "/" && `prefix=${pythonOf(summary.prefix)}`, isSafe && 'token=os.environ["MLPKIT_TOKEN"]'].filter(Boolean).join(", ")
	const Python = `${isSafe ? "import os\n\n" : ""}from mlpkit import Client\n\nclient = Client(${client})\nprint(client.predict(\n${
		Object.values(body).map(value => `    ${pythonOf(value)},\n`).join("")}))`
	draw(place, pairs({curl, Python}).map(([name, text]) => code(text, name)))
}
function pythonOf(value) {
	if (value == null) return "None"
	if (typeof value === "boolean") return value ? "True" : "False"
	if (Array.isArray(value)) return `[${value.map(pythonOf).join(", ")}]`
	if (typeof value === "object") return `{${pairs(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonOf(item)}`).join(", ")}}`
	return JSON.stringify(value)
}

const marked = (...content) => h("p.marked", content)
// The answer as its kind asks for; a text as it is; null if it is of another shape.
function drawnAnswer(kind, answer, asked) {
	const draws = {text_classification: drawLabels, text_sequence_labeling: drawEntities, text_cluster: drawClusters, relation_extraction: drawRelations, text_generation: drawTexts}
	try { return isString(answer) ? marked(answer) : draws[kind](answer, asked) } catch { return null }
}
const score = value => number(value, 1)

function drawLabels(answer, {params}) {
	const limit = params?.threshold
	if (answer.length === 0) return soft(t("noLabels"))
	return h("div.stack",
		h("div.labels", answer.slice(0, 100).map(item => [user(item.label),
			h(`svg.track${item.score < limit ? ".under" : ""}`, {viewBox: "0 0 100 100", preserveAspectRatio: "none"},
				h("path", {d: `M0 50H${Math.min(100, Math.max(0, item.score))}`}), limit != null && h("path.limit", {d: `M${limit} -40V140`})),
			h("span.num", score(item.score))])),
		limit != null && small(t("threshold", {n: limit})))
}
function drawEntities(answer, {features}) {
	const sentence = [features.sentence, ...Object.values(features)].find(isString)
	// Positions count characters, as Python does, not units of UTF-16.
	const letters = [...sentence ?? ""]
	return h("div.stack", [answer].flat().map(({entity_list: found, score: common}) => {
		const kinds = [...new Set(found.map(entity => entity.label))]
		const parts = []
		let place = 0
		for (const {label, score: own, start_pos: start, end_pos: end} of [...found].sort((a, b) => a.start_pos - b.start_pos)) {
			if (start < place || end >= letters.length) continue
			parts.push(letters.slice(place, start).join(""), h(`mark.s${kinds.indexOf(label) % 4}`, {title: `${label} ${score(own)}`}, letters.slice(start, end + 1).join(""), h("sub", label)))
			place = end + 1
		}
		return [marked(parts, letters.slice(place).join("")), found.length === 0 ? soft(t("foundNothing")) : small(`${t("score")} ${score(common)}`)]
	}))
}
function drawClusters(answer) {
	if (answer.length === 0) return soft(t("foundNothing"))
	return h("ul.groups", answer.slice(0, 200).map(group => h("li", h("div.line", h("strong", user(group.cluster_name)), h("span.soft.small", score(group.score))), h("ul", group.cluster.slice(0, 100).map(text => h("li", user(text)))))))
}
function drawRelations(answer) {
	const found = answer.relations ?? answer
	if (found.length === 0) return soft(t("foundNothing"))
	const side = item => h("span", user(item.name), h("span.soft.small", " ", user(item.label)))
	return h("ul", found.slice(0, 200).map(relation => h("li.triple", side(relation.subject), h("b", user(relation.predicate.text), " →"), side(relation.object), h("span.num", score(relation.score)))))
}
function drawTexts(answer) {
	return h("ul.stack", [answer].flat().slice(0, 50).map(item => h("li", marked(item.text ?? item), item.score != null && small(score(item.score)))))
}

// ---- begin

document.body.append(h("a.skip", {href: "#content", on: {click: event => { event.preventDefault(); main.focus() }}}, t("skip")), top, main, foot, toast)
addEventListener("hashchange", () => { route(); main.focus({preventScroll: true}); scrollTo(0, 0) })
document.addEventListener("visibilitychange", () => { if (document.hidden) streaming?.abort(); else { follow(); refresh() } })
route()
follow()
