/* cache.cu - where a key lies in a cache, and what its elements are worth; >>state and >>tiles of attn.h. */
#ifndef ATTN_CACHE_CU
#define ATTN_CACHE_CU

#include "spans.cu"

/* attn_scale of attn.h */
enum { PER_TENSOR, PER_HEAD, PER_REQUEST, PER_KEY };

/* Which slot of its request's cache a key has. */
DEVICE int slot_of(const attn_cu_layer &l, int key) { return l.ring ? key % l.ring : key; }

/* Where a key lies: `slot` rows behind page `page` of a paged cache, behind request `page` of a padded one, behind the
   start of a ragged one. The same for K, V and their scales. */
struct place {
    i64 page, slot;
};

DEVICE place place_of(const attn_cu_call &p, const view &v, bool ragged, int request, int key) {
    int size = p.layer.page_size;
    int slot = slot_of(p.layer, key);
    if (size) {
        place in_page = { pointer<int>(p.page_table)[request * p.table_row + slot / size], slot % size };
        return in_page;
    }
    place in_cache = { ragged ? 0 : request, ragged ? (i64)v.kv_start[request] + key : slot };
    return in_cache;
}

DEVICE i64 value_address(const attn_cu_cache &c, place at, int head) {
    return c.base + at.page * c.page + at.slot * c.row + head * c.head;
}

/* Only where c.scale is not 0. */
DEVICE float *scale_address(const attn_cu_cache &c, place at, int head) {
    return pointer<float>(c.scale + at.page * c.scale_page + at.slot * c.scale_row) + head;
}

DEVICE i64 key_address(const attn_cu_call &p, const view &v, const attn_cu_cache &c, int request, int head, int key) {
    return value_address(c, place_of(p, v, c.ragged, request, key), head);
}

DEVICE float *key_scale(const attn_cu_call &p, const view &v, const attn_cu_cache &c, int request, int head, int key) {
    return scale_address(c, place_of(p, v, c.ragged, request, key), head);
}

/* The factor of one kv head of a cache whose scales stand at `scale`, 0: none; 1 where each key has its own. */
DEVICE float head_scale(const attn_cu_layer &l, i64 scale, int request, int head) {
    const float *factors = pointer<float>(scale);
    if (!scale || l.scale_kind == PER_KEY) return 1.0f;
    if (l.scale_kind == PER_TENSOR) return factors[0];
    return factors[l.scale_kind == PER_HEAD ? head : (i64)request * l.kv_heads + head];
}

/* May the kernels of a call run? If not, they write nothing: the plan is another layer's, or something is wrong. */
DEVICE bool call_fits(const attn_cu_call &p) {
    return plan_fits(p.layer, p.plan) && !(p.is_checked && pointer<attn_cu_fault>(p.exec)->rule);
}

#endif
