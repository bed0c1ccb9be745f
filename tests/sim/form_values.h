/* form_values.h - the values that instruction forms are tried with: zeros, ends of ranges, NaN, infinities, subnormals,
   -0, widths and what lies beside them, limits and ties of the small formats. The first 12 of each table matter most:
   conformance recordings have all their pairs. */
#ifndef FORM_VALUES_H
#define FORM_VALUES_H

#include <stdint.h>

static const uint32_t edges32[] = {
    0,          0x80000000u, 1,           0x80000001u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7F800000u, 0xFF800000u, 0x7FC00000u,
    0xFFC00001u, 0x7F7FFFFFu, 0xFF7FFFFFu, 0x00800000u, 0x807FFFFFu, 0x007FFFFFu, 0x3F800000u, 0xBF800000u, 0x40000000u,
    0x3F000000u, 0x477FE000u, 0x477FF000u, 0x33800000u, 0x33000000u, 0x43E00000u, 0x43E80000u, 0x47600000u, 0x4F000000u,
    0xCF000000u, 0x4B800001u, 0x3FC00000u, 0x40200000u, 31,         32,          33,          255,         0x80,
    7,          0xFFFFFFF9u, 0x0102FF80u, 0x80007FFFu, 0x3F7FFFFFu, 0x7E800001u, 0x5F000000u, 0xC2FC0000u,
};
static const uint16_t edges16[] = { 0,      0x8000, 1,      0x7FFF, 0xFFFF, 0x7C00, 0xFC00, 0x7E01, 0x0400,
                                    0x03FF, 0x83FF, 0x3C00, 0x7BFF, 0x7F80, 0xFF80, 0x007F, 0x80FF, 0x7E7C };
static const uint64_t edges64[] = {
    0, 1, 0x7FFFFFFFFFFFFFFFu, 0x8000000000000000u, 0xFFFFFFFFFFFFFFFFu, 0xFFFFFFFFu, 0x100000000u, 7,
    0xFFFFFFFFFFFFFFF9u, 0x3FF0000000000000u, 0x7FF0000000000000u, 0x4330000000000001u, 0x20000020000001u,
    0x7FFFFFBFFFFFFFFFu, 0x47EFFFFFF0000000u, 0x8000000000000401u,
};

enum { EDGES_32 = sizeof edges32 / 4, EDGES_16 = sizeof edges16 / 2, EDGES_64 = sizeof edges64 / 8 };

#endif
