/* The firmware for tests of the agent, which tells of every run through SEGGER's RTT as well. */
#define RTT
#include "firmware.c"
