def test_smoke(model, picture, greedy_ids, text_of):
    m=[{"role":"user","content":"<image>\nWhat colour is the cat?"}]
    ids=greedy_ids(model,m,[picture(1)])
    print(ids, repr(text_of(model,ids)))
    print(repr(model.generate("What colour is the cat?", images=[picture(1)], max_new_tokens=24)))
    assert model.generate("What colour is the cat?", images=[picture(1)], max_new_tokens=24)==text_of(model,ids)
