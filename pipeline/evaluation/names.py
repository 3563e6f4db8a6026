"""The names in the tables of `evaluate`, `perplexity` and `compare`: tasks, measures, arms, and ways to be asked."""

HELDOUT = "heldout"  # the held-out text, beside the tasks
# measures; NORM: accuracy by log-probabilities a byte, of tasks of kind text; losses are in nats a token: with thoughts
# before every token, and with thoughts after the marker alone
ACCURACY, NORM, PROB, LOSS, MARKED = "accuracy", "accuracy_norm", "prob", "loss", "loss_after_marker"
LOSSES = (LOSS, MARKED)
AFTER = "after_marker"  # a column: whether the token follows the marker of train.thinking

RUN = "quiet_star"  # the method of which something is claimed
BEFORE = "before"  # the model before training, as a method and as an arm
CONTINUED = "no_thought"  # continued pretraining, likewise
UNTRAINED = "untrained"  # thoughts as initialised

# ways in which a model is asked: with its own thoughts, with none, and with a thought where its gate says so
THOUGHT, NO_THOUGHT, GATED = "thought", "no_thought", "gated"
# a model that never trained may know more than its greedy thoughts say
SAMPLED, MEAN, MEAN_SAMPLES = "sampled", "mean16", 16
# in the place of its own: another text's thought, random tokens, and another problem's thought with the same last token
SWAPPED, RANDOM, SAME_LAST = CONTROLS = "swapped", "random", "same_last"
# of arms alone: a method's predictions without its thoughts, and its own thoughts on the questions of `SAME_LAST`
OFF, OWN_WHERE = "thoughts_off", "own_where_same_last"
