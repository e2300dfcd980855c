/** No port: the core runs at the clock it has after reset, and there is no trigger pin. */
#include "port.h"

uint32_t edgefront_port_init(void)
{
    return 0;
}

void edgefront_port_cache(uint32_t is_on)
{
    (void)is_on;
}

void edgefront_port_trigger(uint32_t is_high)
{
    (void)is_high;
}

void edgefront_port_sleep(uint32_t clock_hz, uint32_t ms)
{
    (void)clock_hz;
    (void)ms;
}

int32_t edgefront_port_temperature(void)
{
    return INT32_MIN;
}
