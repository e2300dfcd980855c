/* Runs the network on this machine and compares every output with the test vectors, bit for bit. */
#include "edgefront.h"
#include "test_vectors.h"

#include <stdio.h>

int main(void)
{
    const edgefront_sizes_t *sizes = edgefront_sizes();
    int n_wrong = 0;

    if (sizes->input_bytes != TEST_INPUT_BYTES || sizes->output_bytes != TEST_OUTPUT_BYTES) {
        printf("the network's sizes are not those of the test vectors\n");
        return 1;
    }
    if (edgefront_init() != 0) {
        printf("edgefront_init failed\n");
        return 1;
    }
    for (int i = 0; i < TEST_VECTORS; ++i) {
        int8_t output[TEST_OUTPUT_BYTES];
        int is_wrong = edgefront_run(test_inputs[i], output) != 0;
        for (int k = 0; k < TEST_OUTPUT_BYTES; ++k) {
            is_wrong |= output[k] != test_outputs[i][k];
        }
        n_wrong += is_wrong;
    }
    printf("%d of %d test vectors bit for bit\n", TEST_VECTORS - n_wrong, TEST_VECTORS);
    return n_wrong != 0;
}
