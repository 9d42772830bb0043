"""The first hint for each known mistake: a question that leads to the mistake without naming it."""

from __future__ import annotations

_MODULE = {
    "input-changed": "after forward, does x still hold what the caller put into it?",
    "no-gradient": "can autograd follow every step from the output back to x and to the weights?",
    "dropout-in-evaluation": "after model.eval(), should two calls with the same x differ?",
}
_CALLS = {
    "generator-reset": "in training, should two calls with the same x drop the same numbers?",
    "dropout-repeated": "in training, should two calls with the same x drop the same numbers?",
}
_GAIN_START = (
    "should a new layer norm, before any training, change channels that are already normalised?"
)
_MEAN = "how many means are there for x of shape (B, T, C), and over which numbers is each taken?"
_EPS = "which number must you add before you take the root, and to what?"
_SQUARES = "what is squared, and by which number is the sum of the squares divided?"
_AFFINE = "which of gain and bias multiplies, which is added, and in which order?"
_DROP = "in training, which numbers become 0, how often, and what happens to the other numbers?"
_ACTIVATION = "which function acts between the two layers, and which one does the exercise ask for?"
_GELU = "at x = 3 GELU is nearly 3, and at x = -3 nearly 0: what does your formula give?"
_NORM_PLACE = "for each norm: does it act on the input of a branch, or on something else?"
_SUM = "which two tensors are added after the attention, and is each of them added exactly once?"
_SECOND_SUM = "which two tensors are added at the end, and is anything done to the sum?"
_SECOND_NORM = "what does the feed-forward network read, and which norm computed that input?"
_PARTS = "which four submodules does a block have?"
_WINDOW = "with 7 tokens and windows of 5, at which tokens can a window begin?"
_TARGET = "if x begins with the tokens 8, 9, 10, with which tokens does y begin?"
_TWO_PIECES = "after two pieces of a text, which of its tokens are stored?"
_EVERY_PART = (
    "after two pieces of a text, for how many tokens are keys stored, and for how many values?"
)
_MANY_KEYS = "with how many keys must one new query be compared?"
_ITSELF = "does a new token look at itself, and is its key among the keys that you use?"
_NEXT_POSITION = "if 5 tokens are stored, which position does the next token have?"
_LATER = "if three new tokens come at once, can the first of them look at the third?"
_FIRST_ROW = "with 6 tokens stored, which keys can the first of 3 new tokens look at?"
_MEAN_LOSS = "over how many numbers is the loss averaged?"
_DECAY = (
    "what are the rates at warmup_steps, half way from there to max_steps, at max_steps, and one "
    "step later?"
)
_ONE_NORM = "how many norms do you compute: one per parameter, one per number, or one in total?"
_NORM = "what is the norm of the vector (3, 4), and which norm does your code give?"
_SHRINK = "what should happen to gradients whose norm is already below max_norm?"
_ORDER = (
    "in which order must zeroing, backward, clipping and the step come, and how often does each of "
    "them come?"
)
_RATE = "which learning rate does each parameter group have when optimizer.step() runs?"
_TIE = "if two pairs are equally frequent, which of them comes first in the text?"
_NUMBER = "how many merges should train(text, 3) learn from a long text?"
_START = "with which ids does the text begin, before any merge?"
_RANK = "of all known pairs in the text, which pair was learnt first?"
_UTF8 = "what should decode return for bytes that are not valid UTF-8?"
_COLDER = "the logits 2 and 1 differ by 1: by how much do your results differ at temperature 0.5?"
_COUNT_KEPT = "how many of 5 tokens does your function keep at k = 2?"
_NUCLEUS = "with the probabilities 0.4, 0.25, 0.2, 0.1, 0.05 and p = 0.5: which tokens stay?"
_BY_SIGN = "is -2 / 1.5 larger or smaller than -2, and is 2 / 1.5 larger or smaller than 2?"
_DRAWN = "with the probabilities 0.2, 0.5, 0.3: which id does u = 0.1 give? u = 0.6? u = 0.9?"
_PARTS_ORDER = "which logits does each function get, and which logits should it get?"
_FILE = "if another program had only the file, could it make the same merges, in the same order?"
_RMS = (
    "for x of shape (B, T, C), how many divisors does RMSNorm compute, and from which numbers is "
    "each computed?"
)
_LAST = "with head_dim 8, which four frequencies do you get by hand, and which does your code give?"
_PAIR = "which two channels make a pair: neighbours, or channel i and channel i + D/2?"
_QUARTER = "at an angle of 90 degrees, what should become of the pair (1, 0)?"
_WHERE = (
    "in which dimension of x are the positions, and along which dimension do cos and sin change?"
)
_WHICH = "which of q, k and v decide which tokens a query looks at?"
_GROUPS = "with 4 query heads and 2 key/value heads, which key/value head does each query head use?"
_SCORE = "a score is a sum of products: how many products?"

QUESTIONS: dict[str, dict[str, str]] = {
    "layernorm": {
        **_MODULE,
        "missing-gain": "which parameters does training change in a layer norm?",
        "bias-ignored": "what should config.bias = False change in your constructor?",
        "gain-not-ones": _GAIN_START,
        "bias-not-zeros": _GAIN_START,
        "mean-over-time": _MEAN,
        "mean-over-batch": _MEAN,
        "mean-over-everything": _MEAN,
        "mean-over-tokens-and-channels": _MEAN,
        "mean-over-batch-and-time": _MEAN,
        "rms": "what is the mean of the channels after your normalisation?",
        "unbiased-variance": "by which number do you divide the sum of the squares: C or another?",
        "sum-for-mean": _SQUARES,
        "not-squared": _SQUARES,
        "root-of-deviation": "how often do you take a root on the way from x to the divisor?",
        "variance-not-centred": "you average squares: squares of which numbers?",
        "eps-outside": _EPS,
        "eps-divided": _EPS,
        "no-eps": "what happens to a token whose channels are all equal?",
        "another-eps": "how large is your eps, and how large is the eps of GPT-2?",
        "no-root": "after your normalisation, what is the variance of the channels?",
        "not-centred": "after your normalisation, what is the mean of the channels?",
        "multiplied-by-root": "should layer norm make a token with a large variance larger or "
        "smaller?",
        "no-gain": "which of your parameters does the result of forward depend on?",
        "no-bias": "which of your parameters does the result of forward depend on?",
        "no-gain-or-bias": "which of your parameters does the result of forward depend on?",
        "gain-added": _AFFINE,
        "bias-before-gain": _AFFINE,
        "bias-subtracted": "with a gain of 1, does a bias of 1 make your output larger or smaller?",
        "gain-plus-one": "with a gain of 1, by which number do you multiply each channel?",
        "gain-and-bias-swapped": _AFFINE,
        "changes-in-training": "does a layer norm behave differently in training?",
    },
    "mlp": {
        **_MODULE,
        **_CALLS,
        "missing-layer": "how many linear layers does a feed-forward network have?",
        "no-second-layer": "which layer brings the 4C channels back to C?",
        "gated": "how many linear layers does GPT-2's feed-forward network have?",
        "fixed-width": "what is the width of your layers if config.n_embd is 6?",
        "wrong-second-layer": "how many channels go into your second layer, and how many come out?",
        "wrong-width": "how many channels does a token have inside the network, between the two "
        "layers?",
        "bias-ignored": "what should config.bias change in each of your linear layers?",
        "projection-bias-ignored": "what should config.bias change in each of your linear layers?",
        "gelu-before-expanding": "what does the first layer read: x, or a result computed from x?",
        "tanh-gelu": "GELU has an exact and an approximate form: which form is yours?",
        "relu": _ACTIVATION,
        "silu": _ACTIVATION,
        "sigmoid-gelu": "GELU has an exact form and approximations: which form is yours?",
        "no-activation": "which function acts between your two linear layers?",
        "sigmoid": _ACTIVATION,
        "tanh": _ACTIVATION,
        "leaky-relu": _ACTIVATION,
        "gelu-twice": "how often does an activation function act on the 4C channels?",
        "gelu-without-x": _GELU,
        "gelu-without-root": "which number is divided by the square root of 2 in the exact form?",
        "gelu-without-half": _GELU,
        "gelu-after-projection": "on which channels does GELU act: on the 4C channels inside, or "
        "on others?",
        "output-bent": "can your output take any value, also large negative ones?",
        "residual-inside": "which code adds x to the result: this network, or the block around it?",
        "scaled-in-evaluation": "what does dropout do in evaluation?",
        "dropout-never-acts": "in training, how many numbers of your output are 0?",
        "dropout-rate-inverted": "at config.dropout = 0, how many numbers should be dropped?",
        "dropout-rate": "which number decides how many values your dropout drops?",
        "dropout-not-scaled": "what is the mean of a channel in training, and in evaluation?",
        "dropout-in-groups": _DROP,
        "dropout-elsewhere": "which tensor does your dropout change?",
    },
    "block": {
        **_MODULE,
        **_CALLS,
        "missing-attention": _PARTS,
        "missing-mlp": _PARTS,
        "missing-norm": _PARTS,
        "shared-norm": "how many norms does a block have, and what is the input of each?",
        "post-norm": _NORM_PLACE,
        "branch-normed": _NORM_PLACE,
        "no-norms": "what are the inputs of the attention and of the feed-forward network?",
        "no-first-norm": "what is the input of the attention: x, or x after a norm?",
        "norms-swapped": "which of the two norms belongs to which half?",
        "mlp-first": "which comes first: do tokens exchange information, or is each token "
        "processed separately?",
        "no-residuals": "what happens to x itself on its way through the block?",
        "no-first-residual": "what happens to x itself after the attention?",
        "residual-from-norm": "when you add to x, is x still the input of forward?",
        "no-first-half": "which of your four submodules does forward use?",
        "no-attention": "which of your four submodules does forward use?",
        "nothing-done": "which of your four submodules does forward use?",
        "attention-twice": _SUM,
        "residual-doubled": _SUM,
        "sum-scaled": "by which factor is x multiplied on its way through the first half?",
        "second-sum-scaled": _SECOND_SUM,
        "first-norm-again": _SECOND_NORM,
        "no-second-norm": _SECOND_NORM,
        "second-branch-normed": _SECOND_NORM,
        "parallel": "is the input of the second half the result of the first half?",
        "attention-normed-again": "what is the input of the second norm?",
        "no-second-residual": _SECOND_SUM,
        "second-residual-from-norm": "do you add to the sum itself, or to another tensor?",
        "second-residual-from-x": "to which tensor do you add the feed-forward output?",
        "no-second-half": "which of your four submodules does forward use?",
        "no-mlp": "which of your four submodules does forward use?",
        "norm-at-the-end": _SECOND_SUM,
    },
    "tokenizer": {
        "characters-not-bytes": _START,
        "not-utf8": _START,
        "text-changed": _START,
        "merges-shared": "which merges does a new tokenizer have, before it is trained?",
        "ties-last-seen": _TIE,
        "ties-largest-pair": _TIE,
        "ties-smallest-pair": _TIE,
        "rarest-pair": "which pair saves the most tokens when you merge it?",
        "overlaps-not-counted": "how often does the pair `aa` occur in `aaa`?",
        "every-second-pair": "which pairs of neighbours does `abcd` have?",
        "counted-once": "after the first merge, which pairs are new in the text?",
        "one-merge-too-few": _NUMBER,
        "one-merge-too-many": _NUMBER,
        "vocabulary-size": "do the 256 bytes count as merges?",
        "too-few-pairs": "how many pairs are there in a text of one character?",
        "merge-overlapping": "if `aa` becomes one token, what becomes of `aaa`?",
        "merge-from-right": "if `aa` becomes one token, what becomes of `aaa`?",
        "merge-first-only": "at how many places in the text must one merge be applied?",
        "last-id-lost": "is the last id of the text still there after a merge?",
        "not-merged": "after the first merge, which list of ids do you count?",
        "wrong-new-id": "which ids do the 256 bytes have, and which id is the first free one?",
        "merges-reversed": "in `merges`, what is the key, and what is the value?",
        "merges-not-kept": "where does train store a pair that it has merged?",
        "merges-of-bytes": "what are the two parts of a pair in `merges`?",
        "no-merges-applied": "where does your encode use the merges?",
        "encodes-characters": _START,
        "encodes-not-utf8": _START,
        "encodes-changed-text": _START,
        "state-kept": "what does the method use besides its argument and the merges?",
        "encode-loses-ids": "do your ids, decoded, give the same bytes as the text?",
        "latest-merge-first": _RANK,
        "leftmost-first": _RANK,
        "most-frequent-first": _RANK,
        "longest-match": _RANK,
        "one-pass": "can the result of a merge be one half of another known pair?",
        "first-place-only": "at how many places in the text must one merge be applied?",
        "short-text": "how many pairs are there in a text of one byte, and in an empty text?",
        "strict-utf8": _UTF8,
        "ignores-invalid": _UTF8,
        "decoded-one-by-one": "can a single token be half a character?",
        "ids-changed": "after decode, does the list still hold what the caller put into it?",
        "decodes-latin-1": "which encoding turned the text into bytes?",
        "load-loses-merges": _FILE,
        "load-changes-merges": _FILE,
        "load-ignores-file": _FILE,
        "load-keys": "which type do the pairs have after load, and which type did they have "
        "before?",
    },
    "training": {
        "batch-shape": "what are the shapes of x and y for 4 windows of 5 tokens?",
        "not-int64": "which dtype must token ids have for an embedding?",
        "targets-not-shifted": _TARGET,
        "targets-shifted-wrongly": _TARGET,
        "targets-rolled": "which token follows the last token of a window?",
        "targets-mixed": _TARGET,
        "same-every-time": "should two calls of get_batch give different batches?",
        "not-a-window": "are the tokens of one row of x neighbours in the data?",
        "start-out-of-range": _WINDOW,
        "last-start-missing": _WINDOW,
        "first-start-missing": _WINDOW,
        "same-windows": "do the rows of a batch come from different places in the data?",
        "generator-ignored": "should two generators with the same seed give the same batch?",
        "loss-summed": _MEAN_LOSS,
        "softmax-twice": "does cross_entropy expect logits or probabilities?",
        "shifted-again": "which token does position t of logits predict?",
        "last-position-only": _MEAN_LOSS,
        "perplexity": "which of the two is minimised: the loss, or the perplexity?",
        "bits": "in which unit is the loss: nats or bits?",
        "sign": "does a better prediction have a smaller or a larger loss?",
        "warmup-from-zero": "what is your learning rate at step 0?",
        "no-warmup": "what are your learning rates in the first warmup_steps steps?",
        "linear-decay": _DECAY,
        "whole-cosine": _DECAY,
        "decay-to-zero": _DECAY,
        "floor-added": _DECAY,
        "decay-from-zero": "what are the learning rates at the last step of the warm-up and at the "
        "step after it?",
        "decay-too-long": "by how many steps do you divide, and how many steps does the decay "
        "have?",
        "rises-again": _DECAY,
        "zero-after-the-end": _DECAY,
        "norm-of-each": _ONE_NORM,
        "clipped-by-value": _ONE_NORM,
        "always-scaled": _SHRINK,
        "no-root": _NORM,
        "another-norm": _NORM,
        "not-clipped": "after your function, has p.grad of any parameter changed?",
        "returns-norm-after": "do you return the norm before scaling, or the norm after it?",
        "without-gradient": "what is p.grad of a parameter that was not used?",
        "parameters-exhausted": "how often can you loop over the result of one call of "
        "model.parameters()?",
        "no-backward": "which line computes the gradients?",
        "last-batch-only": "how often is backward called, and on which losses?",
        "no-step": "which line changes the weights?",
        "no-zero-grad": _ORDER,
        "zero-each-batch": _ORDER,
        "zero-before-step": _ORDER,
        "not-divided": "four batches of 2, or one batch of 8: do both give the same gradient?",
        "step-each-batch": _ORDER,
        "no-clipping": _ORDER,
        "clipped-each-batch": _ORDER,
        "rate-not-set": _RATE,
        "rate-of-first-group": _RATE,
        "returns-last-loss": "of three batches, which loss do you return?",
        "autograd-left-off": "after your function has run, can a later training step compute "
        "gradients?",
        "not-in-eval-mode": "is dropout active while you measure the loss?",
        "left-in-eval-mode": "in which mode is the model after evaluate?",
        "gradients-on": "does evaluation need gradients?",
        "not-the-mean": _MEAN_LOSS,
        "changes-the-model": "should an evaluation change the model?",
    },
    "sampling": {
        "helper-is-no-softmax": "your softmax makes three numbers of [1, 2, 3]: what is their sum?",
        "returns-probabilities": "what does the next function do with the tensor that you return?",
        "order-lost": "which token does place 3 of the tensor belong to?",
        "zero-for-cut": "what is the probability of a token whose logit is 0?",
        "all-cut": "which token must every setting keep?",
        "multiplied": _COLDER,
        "probabilities-divided": "what does the division act on: logits, or probabilities?",
        "temperature-unused": _COLDER,
        "temperature-squared": _COLDER,
        "floor-division": "what is 1 // 2 in Python?",
        "one-too-few": _COUNT_KEPT,
        "one-too-many": _COUNT_KEPT,
        "keeps-the-smallest": "is the likeliest token among those that you keep?",
        "by-size-without-sign": "is a token with the logit -9 likely or unlikely?",
        "only-the-kept": "how does the draw know which id a logit belongs to?",
        "k-too-large": "what does your function do with 5 logits and k = 9?",
        "crossing-cut": _NUCLEUS,
        "one-after-crossing": _NUCLEUS,
        "not-sorted": "in which order do you add up the probabilities?",
        "least-likely-first": "which token comes first in your sorted tensor?",
        "mask-in-sorted-order": "after the sort, which id does place 0 belong to?",
        "each-alone": "what must reach p: one probability, or a sum of several?",
        "sum-of-logits": "which numbers do you add up?",
        "shares-of-logits": "can a probability be negative, and can one of your shares be "
        "negative?",
        "remembers": "what does your function still have from the call before?",
        "holds-too-little": "the stop string is `KING:`, and the text ends with `KING`: what must "
        "you hold back?",
        "one-minus-p": _NUCLEUS,
        "p-one": "do the probabilities of all tokens add up to exactly 1 on a computer?",
        "absolute-threshold": "if the likeliest token has probability 0.1, which threshold does "
        "p = 0.5 give?",
        "threshold-of-logits": "which numbers do you compare: logits, or probabilities?",
        "not-the-largest": "with which token's probability is p multiplied?",
        "keeps-the-unlikely": "is the likeliest token among those that you keep?",
        "likeliest-cut": "at p = 1, which probability equals the threshold?",
        "p-zero": "which tokens stay at p = 0?",
        "negative-divided": _BY_SIGN,
        "signs-swapped": _BY_SIGN,
        "penalty-subtracted": "what should a penalty of 1 change?",
        "each-occurrence": "if a token is in the text three times, how often is it penalised?",
        "all-tokens": "which tokens should keep their logits?",
        "other-tokens": "which tokens should keep their logits?",
        "some-of-the-text": "which ids of seen_ids count?",
        "one-sign-only": _BY_SIGN,
        "penalty-unused": "does the tensor that you return differ from the argument?",
        "u-ignored": "where does your function use u?",
        "always-the-likeliest": "where does your function use u?",
        "drawn-in-sorted-order": "at which id do the sums begin?",
        "no-softmax": "how large is the last of your sums?",
        "one-too-far": _DRAWN,
        "one-too-early": _DRAWN,
        "u-mirrored": _DRAWN,
        "no-sum": _DRAWN,
        "equally-likely": "if u takes every value between 0 and 1, how often does each token come?",
        "last-or-first": _DRAWN,
        "comparison-reversed": _DRAWN,
        "zero-temperature": "what does your function do before it divides by t = 0?",
        "greedy-without-penalty": "which logits does the greedy choice look at?",
        "always-greedy": "where does your function use u?",
        "left-out": "which of the functions of steps 1 to 6 does next_token use?",
        "penalty-late": _PARTS_ORDER,
        "temperature-late": _PARTS_ORDER,
        "filters-reordered": _PARTS_ORDER,
        "softmax-twice": "what does draw expect: logits, or probabilities?",
        "values-swapped": "which argument belongs to which filter?",
        "stop-shown": "is the stop string part of the text?",
        "rest-held": "what should happen to the text after a stop string?",
        "only-at-the-end": "can one token contain a stop string, and more text after it?",
        "not-at-the-start": "what does find return if the text begins with the stop string?",
        "order-of-the-list": "if two stop strings are in the text, which of them ends the text?",
        "last-occurrence": "if the stop string is in the text twice, which occurrence ends the "
        "text?",
        "nothing-held": "the stop string is `KING:`, and the text ends with `KIN`: can you show "
        "`KIN`?",
        "not-stopped": "how does the caller know that the text has ended?",
        "minus-zero": "what is text[:-0] in Python?",
        "holds-too-much": "the stop string is `KING:`, and the text ends with `light`: must you "
        "hold any of it back?",
        "shortest-held": "the stop string is `ababc`, and the text ends with `abab`: which part "
        "must you hold back?",
        "one-stop-only": "what do you do with the second stop string?",
    },
    "cache": {
        "shared-between-caches": "how many caches does a network of 4 layers have, and in which "
        "line does each cache get its tensors?",
        "overwrites": _TWO_PIECES,
        "keeps-the-first": _TWO_PIECES,
        "wrong-dimension": "which of the four dimensions (B, H, T, D) grows with each token?",
        "new-before-old": "in which order are the tokens of the text in your cache?",
        "values-not-stored": _EVERY_PART,
        "keys-not-stored": _EVERY_PART,
        "keys-for-values": "which decide the weights, the keys or the values, and which are "
        "multiplied by the weights?",
        "tokens-lost": "at which places are three new tokens stored, and at which places the "
        "next tokens?",
        "other-dtype": "which dtype do keys and values have before they are stored, and which "
        "dtype afterwards?",
        "other-device": "on which device are the keys before append, and on which device after it?",
        "queries-stored": "which of queries, keys and values does a later token still need?",
        "not-stored": "after a forward, where does the next forward find the tokens of this "
        "forward?",
        "returns-nothing": "what does the last line of append return?",
        "returns-new-only": _MANY_KEYS,
        "returns-old": _ITSELF,
        "swapped": "in which order does forward expect the two tensors?",
        "whole-buffer": "how many tokens are in the cache, and for how many tokens does it have "
        "room?",
        "past-changed": "if two texts begin with the same tokens, which past does the second text "
        "get?",
        "present-not-returned": "where does the next call of forward get the keys and values of "
        "this call?",
        "present-new-only": "which tokens does the next call need, and which tokens does it get?",
        "present-old": "which tokens does the next call need, and which tokens does it get?",
        "present-swapped": "in which order are the two tensors returned, and in which order does "
        "forward read them from the past?",
        "positions-not-offset": _NEXT_POSITION,
        "reset-missing": "which method empties the cache before the next text begins?",
        "cache-not-read": _MANY_KEYS,
        "half-read": "which two tensors come from the cache, and do you use both of them?",
        "new-not-read": _ITSELF,
        "swapped-in-forward": "in which order does forward get the two tensors, and in which order "
        "does it use them?",
        "appended-twice": "how often does one call of forward store the new tokens?",
        "length-always-zero": _NEXT_POSITION,
        "length-of-another-dimension": "keys are (B, H, S, D): which of the four sizes is the "
        "length?",
        "length-counts-calls": "if 5 tokens come at once, by how much does the length grow?",
        "length-of-newest": _NEXT_POSITION,
        "length-off-by-one": _NEXT_POSITION,
        "length-of-nothing": "which position does the first token of a text have?",
        "fits-off-by-one": "with a block_size of 8 and 5 tokens stored, do 3 more fit?",
        "fits-ignores-new": "with a block_size of 8 and 5 tokens stored, do 4 more fit?",
        "fits-ignores-stored": "with a block_size of 8 and 5 tokens stored, do 4 more fit?",
        "fits-inverted": "for an empty cache, should fits(1) be True or False?",
        "never-full": "with a block_size of 8, which position would token number 9 have?",
        "drops-the-oldest": "which positions do the remaining tokens have, and which position "
        "would the new token get?",
        "clear-incomplete": "which attributes change if tokens are stored, and which of them are "
        "reset?",
        "no-mask": _LATER,
        "no-mask-after-stored": _LATER,
        "mask-from-the-corner": _FIRST_ROW,
        "mask-one-too-far": _FIRST_ROW,
        "mask-hides-itself": _FIRST_ROW,
        "mask-hides-stored": _FIRST_ROW,
        "mask-hides-new": "if three new tokens come at once, which tokens can the last of them "
        "look at?",
        "another-diagonal": _FIRST_ROW,
        "mask-inverted": "if a cell of your mask is True, is the key of its column seen or hidden?",
        "mask-is-square": "how many rows and how many columns do the scores have?",
        "mask-not-infinite": "after the softmax, which weight does a masked key have?",
        "mask-after-softmax": "what is the sum of a row of weights after your mask?",
        "misplaced": "after n stored tokens, at which place does the first new token belong?",
        "another-scale": "by which number does week 1 divide the scores, and does this number "
        "change with a cache?",
        "softmax-over-queries": "the weights of one query sum to 1: over which dimension do you "
        "sum them?",
        "no-softmax": "which function turns the scores of a query into weights?",
        "heads-mixed": "after weights @ v, in which order are the dimensions of tokens and heads?",
        "dropout-in-evaluation": "after model.eval(), should two calls with the same x differ?",
        "not-projected": "which layer of the attention does your forward never call?",
        "kept-in-module": "if two texts take turns, where should the past of each text be stored?",
        "returns-more": "which result of forward does the network add to the residual stream?",
        "output-of-all-tokens": "how many tokens come in, and how many outputs go out?",
    },
    "modern": {
        **_MODULE,
        "missing-gain": "which parameters does training change in an RMSNorm?",
        "gain-not-ones": "should a new RMSNorm, before any training, scale the normalised token?",
        "has-bias": "which parts of layer normalisation does RMSNorm not have?",
        "mean-subtracted": "which parts of layer normalisation does RMSNorm not have?",
        "variance-for-squares": "for the token (3, 3), what is the variance, and what is the mean "
        "of the squares?",
        "sum-for-mean": "by which number does RMSNorm divide a token of C ones: by 1, or by a "
        "number that grows with C?",
        "root-of-c-wrong": "by which number does RMSNorm divide a token of C ones: by 1, or by "
        "another number?",
        "not-squared": _SQUARES,
        "no-root": "if a token is twice as large, what happens to its normalised channels?",
        "multiplied-by-root": "should RMSNorm make a token with large channels larger or smaller?",
        "eps-outside": _EPS,
        "no-eps": "what happens to a token whose channels are all 0?",
        "eps-as-minimum": _EPS,
        "another-eps": "how large is your eps, and how large is the eps of the exercise?",
        "over-time": _RMS,
        "over-batch": _RMS,
        "over-everything": _RMS,
        "no-gain": "which of your parameters does the result of forward depend on?",
        "gain-added": "do you multiply by a gain, or do you add it?",
        "gain-divides": "does a gain of 2 make your output larger or smaller?",
        "gain-plus-one": "with a gain of 1, by which number do you multiply each channel?",
        "gain-before-norm": "which comes first: the normalisation, or the gain?",
        "changes-in-training": "does an RMSNorm behave differently in training?",
        "degrees": "in which unit are the angles: radians, degrees or turns?",
        "turns": "in which unit are the angles: radians, degrees or turns?",
        "too-many-frequencies": "how many channels does one angle turn?",
        "exponent-not-doubled": _LAST,
        "exponent-doubled-twice": _LAST,
        "exponent-positive": "which pair of channels turns fastest, the first or the last?",
        "frequencies-reversed": "which pair of channels turns fastest, the first or the last?",
        "last-frequency": _LAST,
        "another-theta": _LAST,
        "one-frequency": "do all pairs turn equally fast? print your frequencies",
        "linear-frequencies": _LAST,
        "positions-from-one": "by which angle is the first token rotated?",
        "positions-reversed": "which position does the first token have?",
        "positions-scaled": "should a token's angle change if the text becomes longer?",
        "sine-and-cosine-swapped": "what are the cosine and the sine of 0, and what does your "
        "function return at position 0?",
        "sine-negative": "what is the sine of 1, and what does your function return at position 1?",
        "no-cosine": "what are the cosine and the sine of 0, and what does your function return at "
        "position 0?",
        "interleaved-angles": _PAIR,
        "without-positions": "how many rows does your table have, and how many positions are "
        "there?",
        "tables-transposed": "what belongs to a row of the table: a position or a frequency?",
        "another-length": "how many rows does your table have, and how many positions are there?",
        "low-precision": "up to which whole number does your dtype represent every whole number "
        "exactly?",
        "tables-rounded": "how many digits of a cosine does the dtype of your tables keep?",
        "result-of-earlier-call": "which results does your function store, and which arguments "
        "must a later call have to get a stored result?",
        "interleaved": _PAIR,
        "interleaved-with-halves": _PAIR,
        "interleaved-with-cat": _PAIR,
        "halves-with-interleaved": "at which channel of your result is the partner of channel 0?",
        "sine-sign": _QUARTER,
        "no-minus": "a rotation keeps the length of x: does your result have the length of x?",
        "own-half": "what do you multiply by the sine: the channel itself, or its partner?",
        "cosine-for-sine": "what should rotate do at position 0, where the cosine is 1 and the "
        "sine is 0?",
        "half-overwritten": "when the second half is computed, does the variable of the first half "
        "still hold the old numbers?",
        "halves-swapped": "what should rotate do at position 0, where the cosine is 1 and the sine "
        "is 0?",
        "half-rotated": _QUARTER,
        "not-rotated": "what does your function return: x, or a new tensor?",
        "rotated-over-heads": _WHERE,
        "rotated-over-batch": _WHERE,
        "half-lost": "how many channels does x have, and how many channels does your result have?",
        "dtype-changed": "which dtypes do x, cos and sin have, and which dtype does their product "
        "have?",
        "x-changed": "after rotate, does x still hold what the caller put into it?",
        "rotation-without-gradient": "can autograd follow the operations from the result of rotate "
        "back to x?",
        "missing-projection": "which four linear layers does attention have?",
        "no-start": "if earlier tokens are in a cache, which position does the first new token "
        "have?",
        "start-ignored": "with start = 3, which row of the table belongs to the first token?",
        "start-of-one": "with start = 3, which rows of the table does q get, and which rows does k "
        "get?",
        "start-stops": "with start = 3 and 5 tokens, what is the last position?",
        "gain-after-rotation": "which two channels of a head form a pair, and do both get the same "
        "gain?",
        "values-rotated": _WHICH,
        "queries-only": _WHICH,
        "keys-only": _WHICH,
        "never-rotated": "does rotate change q itself, or does it return a new tensor?",
        "values-for-keys-rotated": _WHICH,
        "rotated-by-head": _WHERE,
        "rotated-before-split": "does the tensor that you rotate have as many channels as one "
        "head, or more?",
        "angles-of-n-embd": "how many channels do your angles rotate, and how many channels does a "
        "head have?",
        "rotated-twice": "how often is q rotated, and how often k?",
        "different-positions": "which rows of the table does q get, and which rows does k get?",
        "rotated-apart": "at position 5, by which angle is q rotated, and by which angle is k?",
        "rotated-after": "when are the scores computed: before or after the rotation?",
        "heads-without-transpose": "which token do the channels in the second row of the first "
        "head come from?",
        "kv-width": "how many channels do all key/value heads have together?",
        "repeated-in-turn": _GROUPS,
        "values-not-repeated": _GROUPS,
        "values-in-turn": _GROUPS,
        "keys-in-turn": _GROUPS,
        "one-head-for-all": _GROUPS,
        "values-of-one-head": _GROUPS,
        "keys-of-one-head": _GROUPS,
        "scale-of-n-embd": _SCORE,
        "no-scale": _SCORE,
        "another-scale": _SCORE,
        "no-mask": "what can token 0 look at?",
        "mask-reversed": "what can token 0 look at, and what can the last token look at?",
        "mask-of-zeros": "which weight does softmax give to a score of 0?",
        "mask-hides-itself": "what can token 0 look at?",
        "mask-after-softmax": "do the weights of token 0 sum to 1?",
        "softmax-over-queries": "for one query, over which dimension do the weights sum to 1?",
        "keys-for-values": "which are multiplied by the weights: the keys or the values?",
        "merged-without-transpose": "after your reshape, which channels does one token get?",
        "no-output-projection": "which of your four layers does forward use?",
        "residual-inside": "which code adds x to the result: this attention, or the block around "
        "it?",
        "stops-in-bfloat16": "which tensors in your forward do not have the dtype of x?",
    },
}
