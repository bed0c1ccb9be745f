/* two_impl.c - the file that implements; two_use.c and two_use.cc call it. */
#define ATTN_IMPLEMENTATION
#include "../../attn.h"
