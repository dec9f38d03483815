"""Initial rankers: they score items one by one, and their scores sort lists into the initial order.

They learn from the split ``ranker_train`` and from nothing else, and never read in what order items were shown:

- ``lambdamart.LambdaMARTRanker``: boosted trees of LightGBM.
- ``click_model.ClickModel``: the pointwise DNN; also what personalised vectors come from.
- ``order.add_initial_order``: sorts a folder of prepared lists.
"""
