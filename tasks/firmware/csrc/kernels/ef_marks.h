/**
 * Marks of the cycle counter around each layer, for builds that are measured; other builds do not have them.
 *
 * layout    marks [n + 2] for n layers: 0 and 1 directly behind each other, which is what a mark costs; 1 + i before
 *           layer i, and the last behind the last layer
 * counter   DWT_CYCCNT, which whoever starts the network switches on (board/harness.c); where it is missing or dead all
 *           marks are equal, which the harness finds out and reports as has_cycle_counter 0
 * range     cycles modulo 2^32: differences are right for layers of less than 2^32 cycles
 */
#ifndef EF_MARKS_H
#define EF_MARKS_H

#include <stdint.h>

#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define EF_MARK(marks, index) ((marks)[index] = *(const volatile uint32_t *)0xE0001004u)
#else
#define EF_MARK(marks, index) ((void)(marks))
#endif

#endif
