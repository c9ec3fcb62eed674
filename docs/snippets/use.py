from mlpkit.client import Client

with Client("http://127.0.0.1:8000") as client:
    job = client.train("topics", data="topics.tsv", parameters={"alpha": 0.5})
    job.wait(progress=True)
    client.load("topics", job.model_id)
    features = {"sentence": "the team saved a goal"}
    print(client.predict(job.model_id, features, {"top_n": 1}))
