/* cuda_use.c - both headers plainly, twice, beside the implementation in another file; a program that goes on without a
   GPU and says why. */
#include "../../attn_cuda.h"

#include "../../attn.h"
#include "../../attn_cuda.h"

#include <stdio.h>

int main(void) {
    attn_cuda *cuda = NULL;
    attn_error error;
    int status = attn_cuda_open(&cuda, NULL, &error);
    if (status) printf("%s\n", error.text);
    attn_cuda_close(cuda);
    return status && !error.text[0];
}
