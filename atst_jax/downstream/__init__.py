"""What an encoder is worth: the papers' evaluations and the suites of others.

In: an exported encoder and a prepared labelled set. Out: results.json and a table, one row for each
kind of features. Rooms: `linear`, `finetune`, `retrieval`, and `papers` with what was published.
Every evaluation has the skeleton of `evaluation`: resolve, embed, probe, results, table.

Scores are scikit-learn's but for average precision, which has to weigh a thousand draws of clips at
once, recall, where ties count as what their order would give on average, and neighbours, where ties
are decided by cosine. Standard deviations are taken in blocks, since StandardScaler copies all
features to float64.
"""
