/* Row lengths from request lengths: request b has q[b] new rows and kv[b] keys; its row t sees kv - q + t + 1 of them.
   One block for each request; each sums the lengths in front of it. A request with more rows than keys, or rows beyond
   the capacity, is named in *error and writes nothing. */
extern "C" __global__ void __launch_bounds__(128)
expand(const int *__restrict__ q, const int *__restrict__ kv, int *lengths, int *requests, int *error, int capacity)
{
    __shared__ int part[4];
    const int b = blockIdx.x, t = threadIdx.x;
    int sum = 0;
    for (int i = t; i < b; i += blockDim.x) sum += q[i];
    for (int step = 16; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if ((t & 31) == 0) part[t >> 5] = sum;
    __syncthreads();
    const int first = part[0] + part[1] + part[2] + part[3];
    const int rows = q[b], keys = kv[b];
    if (rows > keys || first + rows > capacity) {
        if (t == 0) atomicCAS(error, 0, b + 1);
        return;
    }
    for (int row = t; row < rows; row += blockDim.x) {
        lengths[first + row] = keys - rows + row + 1;
        requests[first + row] = b;
    }
}
