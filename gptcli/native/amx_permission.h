/* Whether this processor multiplies tiles, and whether this process may. */

#ifndef GPTCLI_AMX_PERMISSION_H
#define GPTCLI_AMX_PERMISSION_H

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Asks the system for the tile registers, where there are any: whether they may be used. */
int request_amx(void) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 1;
#endif
}

int compiled_with_amx(void) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    return 1;
#else
    return 0;
#endif
}

#endif
