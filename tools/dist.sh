# dist.sh DIRECTORY - what a release has: attn.h, and attn_cuda.h with the text of the kernels inside, so that two files
# are all that a program needs. Run from the repository root.
dir=$1
mkdir -p "$dir" || exit 1
cp attn.h "$dir/attn.h" || exit 1
awk '/^#include "kernels\// {
         file = $2
         gsub(/"/, "", file)
         while ((status = (getline line < file)) > 0) print line
         if (status < 0) { print "dist: cannot read " file > "/dev/stderr"; exit 1 }
         close(file)
         next
     }
     { print }' attn_cuda.h >"$dir/attn_cuda.h"
