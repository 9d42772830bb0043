/* Asks Linux for permission to use the AMX tile registers.
 *
 * Linux gives a process these 8 KiB of registers only after the process has asked for them with
 * arch_prctl. A program that uses a tile without permission is killed. */

#ifndef GPTCLI_AMX_PERMISSION_H
#define GPTCLI_AMX_PERMISSION_H

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Asks for the permission. Returns 1 if this process now has it, else 0. A library that was
 * compiled without AMX needs no permission, so it returns 1. */
int request_amx(void) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 1;
#endif
}

/* 1 if this library was compiled to multiply AMX tiles, else 0. */
int compiled_with_amx(void) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    return 1;
#else
    return 0;
#endif
}

#endif
