// Philox4x32-10, as in model/src/philox.rs, which names the source.
#pragma once

#include "hardware.cuh"

DEVICE void philox4x32(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)0xD2511F53u * counter[0], second = (uint64_t)0xCD9E8D57u * counter[2];
        counter[0] = (uint32_t)(second >> 32) ^ counter[1] ^ key0;
        counter[2] = (uint32_t)(first >> 32) ^ counter[3] ^ key1;
        counter[1] = (uint32_t)second;
        counter[3] = (uint32_t)first;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}
