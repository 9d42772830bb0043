/* The parameters of a GPT, in the order of the tables in gptcli/model/parameters.py.
 *
 * Python passes an address or an offset for each parameter: first for GLOBALS parameters outside
 * the blocks, then for PER_LAYER parameters of each block. If an arch does not have a parameter,
 * the parameter's offset is -1 and its address is NULL. */

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

/* How many parameters are outside the blocks, and how many are in each block. When library.py loads
 * a library, it compares these counts with the numbers of places in the tables in Python. */
int global_parameters(void) { return GLOBALS; }
int layer_parameters(void) { return PER_LAYER; }

#endif
