/* impl.c - the implementation and nothing else: warnings, symbols, sections and sizes are read from its object. */
#define ATTN_IMPLEMENTATION
#include "../../attn.h"
