"""The evaluations of an encoder: those of the papers, and suites of others.

In: an exported encoder and a prepared labelled set. Out: results.json and a table, one row for each
kind of features. Packages: `linear`, `finetune`, `retrieval`, and `papers` with published scores.
Every evaluation has the skeleton of `evaluation`: resolve, embed, probe, results, table.

Scores are scikit-learn's, with three exceptions. Average precision weighs a thousand draws of clips
at once. Recall counts ties by the mean over their orders. Ties between neighbours are decided by
cosine. Standard deviations are taken in blocks, since StandardScaler copies all features to
float64.
"""
