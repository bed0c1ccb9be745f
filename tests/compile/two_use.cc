// two_use.cc - C++ that links with the implementation in C.
#include "use.h"

int main() {
    return use_attn();
}
