from mlpkit.client import Client

with Client("http://127.0.0.1:8000") as client:
    job = client.train("topics", data="topics.tsv", parameters={"alpha": 0.5})
    job.wait(progress=True)
    client.load("topics", job.model_id)
    print(client.predict(job.model_id, {"sentence": "球队进了一个球"}, {"top_n": 1}))
