/* attn_params.h - what the host hands to the kernels, read by both: only int and long long, so that every compiler
   lays the structs out alike. Addresses are long long, floats are their bits. */
#ifndef ATTN_PARAMS_H
#define ATTN_PARAMS_H

/* attn_layer with every default filled in. */
typedef struct attn_cu_layer {
    int heads, kv_heads, head_dim, v_dim;
    int q_type, kv_type, o_type, mask;
    int window_left, window_right, sink_keys, chunk;
    int page_size, ring, topk, scale_kind;
    int split_keys, row_tile, key_tile, workers;
    int scale, softcap;                         /* bits of floats, as the two factors of skip */
    int skip_mode, skip_prefill, skip_decode, flags;
} attn_cu_layer;

/* A plan: its words in device memory, and what follows from the capacities. See >>plan of attn.h. */
typedef struct attn_cu_plan {
    long long words, max_rows;
    int version, class_id;                      /* what the header must say, or a kernel writes nothing */
    int n, max_q_len, max_kv_len, families;     /* families: bit 0 PREFILL, bit 1 DECODE may occur */
    int strips, tasks, merges, slots;           /* upper bounds */
    int strips_at, tasks_at, merges_at, count;  /* where the arrays start, in words; words in all */
} attn_cu_plan;

/* What is wrong with device arrays, in the header of a plan (lengths) or at the start of exec.mem (a call): 0 or the
   number of a rule, its request (-1: none), slot (-1: none) and the numbers of its sentence. */
typedef struct attn_cu_fault {
    int rule, request, slot, a, b, c, d, e;
} attn_cu_fault;
#define ATTN_CU_FAULT_AT 24                     /* word of a plan's header where its fault stands */

/* attn_cu_fault.rule. First the numbers of the sentence, from a on; request and slot are the fault's own. (d, e): the
   low and the high half of a 64-bit number. */
enum {
    ATTN_CU_RULE_NONE,
    ATTN_CU_RULE_Q_NEGATIVE,                    /* q_len[request] */
    ATTN_CU_RULE_KV_NEGATIVE,                   /* kv_len[request] */
    ATTN_CU_RULE_PHASE,                         /* phase[request] */
    ATTN_CU_RULE_PREFIX,                        /* prefix[request] */
    ATTN_CU_RULE_KV_SHORT,                      /* kv_len[request], q_len[request] */
    ATTN_CU_RULE_Q_CAPACITY,                    /* q_len[request], max_q_len */
    ATTN_CU_RULE_KV_CAPACITY,                   /* kv_len[request], max_kv_len */
    ATTN_CU_RULE_ROW_SUM,                       /* q_len[request] */
    ATTN_CU_RULE_KEY_SUM,                       /* kv_len[request] */
    ATTN_CU_RULE_MAX_ROWS,                      /* sum of q_len, max_rows; no request */
    ATTN_CU_RULE_PLAN,                          /* the words are no plan of this layer and these capacities */
    ATTN_CU_RULE_TREE,                          /* row of all rows, bit: also the slot */
    ATTN_CU_RULE_LAMBDA,                        /* bits of lambda[request] */
    ATTN_CU_RULE_TABLE_ROW,                     /* page_table_row, columns needed, kv_len[request] */
    ATTN_CU_RULE_PAGE,                          /* page, pages, column: also the slot */
    ATTN_CU_RULE_LIST_NEGATIVE,                 /* row of all rows, slot, entry */
    ATTN_CU_RULE_LIST_TWICE,                    /* row of all rows, slot, entry */
    ATTN_CU_RULE_SCORE_PHASE,                   /* phase[request] */
    ATTN_CU_RULE_SCORE_COLUMN,                  /* row of all rows, ks[row], -, (score_row); slot: row of the request */
    ATTN_CU_RULE_SELECT,                        /* row, ke[row], ks[row], (score_row); no request */
    ATTN_CU_RULE_FREQUENCY                      /* index, bits of inv_freq[index]; no request */
};

/* The first 64 bytes of exec.mem, all 0 before the kernels that check. Behind the result stands what their blocks
   share. */
typedef struct attn_cu_verdict {
    attn_cu_fault fault;
    long long first;                            /* ~ of where the first fault is; 0: none */
    int blocks, unused[5];                      /* blocks that are done */
} attn_cu_verdict;

/* attn_cu_plan_make. phase, prefix: 0 where the batch has none. */
typedef struct attn_cu_batch {
    attn_cu_layer layer;
    attn_cu_plan plan;
    long long q_len, kv_len, phase, prefix;     /* int [n]; q_len 0: 1 each */
} attn_cu_batch;

/* One of the caches. Strides in bytes; scale: of its scales per key, 0 without. */
typedef struct attn_cu_cache {
    long long base, page, row, head;
    long long scale, scale_page, scale_row;     /* scale_head is 4 */
    int dim, ragged;                            /* ragged: a request starts after the keys of those before it */
} attn_cu_cache;

/* Everything that runs over a plan: forward, append, index_score, the checker. Unused addresses are 0. Strides of q and
   o in elements. */
typedef struct attn_cu_call {
    attn_cu_layer layer;
    attn_cu_plan plan;
    attn_cu_cache k, v;
    long long q, q_row, q_head, o, o_row, o_head, lse, sinks, alibi, tree, topk, lambda, certificate, counters;
    long long k_scale, v_scale;                 /* scales that are not per key */
    long long page_table, table_row;
    long long exec;                             /* attn_cu_fault, 64 bytes in all, then the slots, then the blocks */
    long long slots, slot_floats;               /* address; floats of one slot or state: strip_rows * state_stride */
    long long blocks, block_bytes;              /* scratch of each block: the states, the bits and the list of TOPK */
    int state_stride, strip_rows, depth;        /* floats of a row's state; rows of the largest strip; states a run */
    int pages, use;                             /* use: 0 forward, 1 append, 2 index_score */
    int block_count, is_checked;                /* is_checked: leave if the fault at exec is set */
    long long new_k, new_v;                     /* append: [row][kv_head][dim] of q_type */
    long long weights, ks, scores, score_row;   /* index_score */
} attn_cu_call;

/* attn_cu_meta: the arrays of attn_meta, 0 where not wanted, and what they are made from. */
typedef struct attn_cu_meta {
    int n, max_q_len, max_kv_len, page_size, sparse_topk, requests;
    long long max_rows, table_row, req_to_token_row;
    long long q_len, kv_len, req_to_token, req_index;
    long long cu_seqlens_q, cu_seqlens_k, seqlens_expand, positions, row_request, sparse_len, cu_sparse;
    long long indexer_ks, indexer_ke, topk_offset, page_table, row_table, pad_row, unpad_row, pad_len;
    long long row_q_len, row_kv_len;
} attn_cu_meta;

/* attn_cu_merge: two results joined, [rows][heads][v_dim] and [rows][heads]. */
typedef struct attn_cu_join {
    long long rows, a_o, a_lse, b_o, b_lse, o, lse;
    int heads, v_dim, o_type, unused;
} attn_cu_join;

/* attn_cu_rope: attn_rope_input. */
typedef struct attn_cu_turn {
    long long x, rows, x_row, x_head, positions, inv_freq;
    int type, heads, head_dim, rotary_dim, interleaved;
    int base, magnitude, unused;                /* bits of floats */
    long long verdict;                          /* attn_cu_verdict; 0: unchecked */
} attn_cu_turn;

/* attn_cu_topk. */
typedef struct attn_cu_select {
    long long scores, score_row, rows, ks, ke, indices;
    int topk, unused;
    long long verdict;                          /* attn_cu_verdict; 0: unchecked, a bad ks or ke gives an empty list */
} attn_cu_select;

#endif
