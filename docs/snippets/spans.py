from mlpkit.formats import Entities, from_bio, from_markup, to_bio

row = from_markup("<START:PER>李华<END>住在<START:LOC>杭州<END>。")
tags = to_bio(len(row.sentence), row.spans)
assert tags == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]

answer = Entities.of(row.sentence, from_bio(tags), scores=[98.0, 91.5])
assert answer.entity_list[1].name == "杭州"
assert answer.serialize()["entity_list"][1]["end_pos"] == 5
