/* The parameters of a GPT, in the order in which gptcli.native.engine.parameter_names gives them.
 */

#ifndef GPTCLI_PARAMETERS_H
#define GPTCLI_PARAMETERS_H

enum { WTE, WPE, LNF, LNF_BIAS, HEAD, GLOBALS };
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

#endif
