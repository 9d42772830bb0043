/* The parameters of a GPT in the order in which the Python code passes their addresses or offsets.
 *
 * First GLOBALS parameters outside the blocks, then PER_LAYER parameters for each block. The names
 * and their order are those of the Python code's table of parameters. A parameter that an arch does
 * not have is absent: its offset is -1, its address NULL. */

#ifndef GPTCLI_PARAMETERS_H
#define GPTCLI_PARAMETERS_H

/* Outside the blocks. */
enum { WTE, WPE, LNF, LNF_BIAS, HEAD, GLOBALS };
/* In each block. */
enum {
    LN1,
    LN1_BIAS,
    QUERY,
    KEY,
    VALUE,
    QUERY_BIAS,
    KEY_BIAS,
    VALUE_BIAS,
    OUT,
    OUT_BIAS,
    Q_NORM,
    K_NORM,
    LN2,
    LN2_BIAS,
    UP,
    GATE,
    UP_BIAS,
    DOWN,
    DOWN_BIAS,
    PER_LAYER
};

/* The two counts. library.py compares them with the Python code's table when it loads a library. */
int global_parameters(void) { return GLOBALS; }
int layer_parameters(void) { return PER_LAYER; }

#endif
