/* The functions of ef_columns_s8.h for cores with the DSP extension. */
#include "ef_options.h"

#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)

    .syntax unified
    .thumb

.macro function name
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .thumb_func
    .type   \name, %function
\name:
.endm

/* Four taps of four pixels: 4 loads, 8 SXTB16, 2 stores of four words. */
.macro step
    ldr.w   r7, [r3], #4
    ldr.w   r8, [r4], #4
    ldr.w   r9, [r5], #4
    ldr.w   r10, [r6], #4
    sxtb16  r0, r7
    sxtb16  r11, r8
    sxtb16  r12, r9
    sxtb16  lr, r10
    stmia.w r2!, {r0, r11, r12, lr}
    sxtb16  r7, r7, ror #8
    sxtb16  r8, r8, ror #8
    sxtb16  r9, r9, ror #8
    sxtb16  r10, r10, ror #8
    stmia.w r2!, {r7-r10}
.endm

    function ef_spread_s8
    push    {r4-r11, lr}
    ldmia   r0, {r3-r6}
#if !EF_SMALL
    tst     r1, #1
    add     r1, r1, #1
    lsr     r1, r1, #1
    bne     2f                      /* an odd number of steps */
#endif
    .balign 4
1:
#if !EF_SMALL
    step
#endif
2:
    step
    subs    r1, #1
    bne     1b
    pop     {r4-r11, pc}
    .size   ef_spread_s8, . - ef_spread_s8

/* r0 in, r1 bytes of a row, r2 rows, r3 from row to row, [sp] out. */
    function ef_gather_s8
    push    {r4-r7, lr}
    ldr     r4, [sp, #20]
1:
    mov     r5, r0
    subs    r6, r1, #4
    blo     3f
2:
    ldr     r7, [r5], #4
    str     r7, [r4], #4
    subs    r6, #4
    bhs     2b
3:
    lsls    r7, r6, #31             /* carry: bit 1; zero: no bit 0 */
    bcc     4f
    ldrh    r7, [r5], #2
    strh    r7, [r4], #2
4:
    tst     r6, #1
    beq     5f
    ldrb    r7, [r5]
    strb    r7, [r4], #1
5:
    add     r0, r0, r3
    subs    r2, #1
    bne     1b
    pop     {r4-r7, pc}
    .size   ef_gather_s8, . - ef_gather_s8

#endif

#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits /* nothing here needs a stack that can be executed */
#endif
