/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Payload into the data ring: two ways, for kernels with dynamic pointers and for those before. */
#ifndef STREAMTAP_COPY_H
#define STREAMTAP_COPY_H

#include "state.h"

enum {
	MAX_PAYLOAD = 524287,	/* GRO_MAX_SIZE; what is longer is counted as lost */
	WAKE_PAUSE_NS = 200000, /* between two wake-ups because of a full ring */
};

/* Whether the reader is to be woken: at once when it slept long or the ring fills, else later. */
static __always_inline __u64 wake_flags(struct settings *set, __u64 now, __u64 used)
{
	__u64 since = now - set->woken_ns;

	if (since > set->wake_ns || (used > set->wake_bytes && since > WAKE_PAUSE_NS)) {
		set->woken_ns = now;
		return BPF_RB_FORCE_WAKEUP;
	}
	return BPF_RB_NO_WAKEUP;
}

/* 0, which the verifier does not know: what it is added to may be any number to it. */
static __always_inline __u32 unknown_zero(struct __sk_buff *skb)
{
	volatile __u32 *length = &skb->len;
	__u32 once = *length;

	return *length - once;
}

#ifdef STREAMTAP_SCRATCH
enum {
	SCRATCH_BYTES = 32768,
	SCRATCH_SLOTS = 4,   /* process, soft and hard interrupt, and one to spare */
	PIECE_BYTES = 16384, /* a power of two: the verifier bounds the length by a mask */
	PIECES = MAX_PAYLOAD / (PIECE_BYTES - 1) + 1,
};

/* For kernels before 5.19: the record is put together in a buffer of this CPU, in pieces. */
struct scratch {
	__u32 busy;
	__u32 reserved;
	struct segment_record record;
	unsigned char payload[SCRATCH_BYTES - sizeof(struct segment_record) - 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCH_SLOTS);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

__noinline int put(struct __sk_buff *skb, struct segment_record *record, struct orphan_tuple *tuple,
		   __u32 offset, __u64 flags)
{
	__u32 left, done = 0, total;
	struct scratch *scratch = 0;
	int result = 0;

	if (!record)
		return -1;
	left = record->captured;
	total = record->length;

	/* A packet hook can be interrupted by another on the same CPU: take a free slot. */
	for (__u32 i = 0; i < SCRATCH_SLOTS; i++) {
		__u32 slot = i;

		scratch = bpf_map_lookup_elem(&scratches, &slot);
		if (scratch && __sync_val_compare_and_swap(&scratch->busy, 0, 1) == 0)
			break;
		scratch = 0;
	}
	if (!scratch)
		return -1;
	scratch->record = *record;
	for (int i = 0; i < PIECES; i++) {
		__u32 piece = left > PIECE_BYTES - 1 ? PIECE_BYTES - 1 : left;
		__u32 head = sizeof(*record);

		if (tuple) {
			__builtin_memcpy(scratch->payload, tuple, sizeof(*tuple));
			head += sizeof(*tuple);
		}
		piece = (piece + unknown_zero(skb)) & (PIECE_BYTES - 1);
		scratch->record.sequence = record->sequence + done;
		scratch->record.captured = piece;
		/* The last piece also stands for what the policy left out. */
		scratch->record.length = left == piece ? total - done : piece;
		if (piece) {
			/* Old verifiers do not learn from the question that it is not 0. */
			__u32 size = piece - 1;

			asm volatile("" : "+r"(size));
			size &= PIECE_BYTES - 1;
			if (bpf_skb_load_bytes(skb, offset + done,
					       scratch->payload + head - sizeof(*record),
					       size + 1)) {
				result = -1;
				break;
			}
		}
		if (bpf_ringbuf_output(&segments, &scratch->record, head + piece, flags)) {
			result = -1;
			break;
		}
		done += piece + unknown_zero(skb);
		left -= piece + unknown_zero(skb);
		if (!left)
			break;
	}
	record->captured = done; /* what was kept before the ring was full */
	__sync_lock_test_and_set(&scratch->busy, 0);
	return result;
}
#else
__noinline int put(struct __sk_buff *skb, struct segment_record *record, struct orphan_tuple *tuple,
		   __u32 offset, __u64 flags)
{
	__u32 head = sizeof(*record), length, failed = 0;
	struct bpf_dynptr to;

	if (!record)
		return -1;
	length = record->captured;
	if (tuple)
		head += sizeof(*tuple);
	if (bpf_ringbuf_reserve_dynptr(&segments, head + length, 0, &to)) {
		bpf_ringbuf_discard_dynptr(&to, 0);
		record->captured = 0;
		return -1;
	}
	bpf_dynptr_write(&to, 0, record, sizeof(*record), 0);
	if (tuple)
		bpf_dynptr_write(&to, sizeof(*record), tuple, sizeof(*tuple), 0);
	/*
	 * Slices of constant size, the greatest first, chosen by the bits of the length: exact, and
	 * the verifier agrees. Above a slice lie those of the higher bits.
	 */
#define SLICE(size)                                                                 \
	if (length & (size)) {                                                      \
		__u32 above = length & ~(2 * (size) - 1);                           \
		void *slice = bpf_dynptr_data(&to, head + above, size);             \
		if (!slice || bpf_skb_load_bytes(skb, offset + above, slice, size)) \
			failed = 1;                                                 \
	}
#define SLICES(a, b, c)                                                                \
	length += unknown_zero(skb); /* or it would follow each combination of bits */ \
	SLICE(a)                                                                       \
	SLICE(b)                                                                       \
	SLICE(c)
	SLICE(262144)
	SLICES(131072, 65536, 32768)
	SLICES(16384, 8192, 4096)
	SLICES(2048, 1024, 512)
	SLICES(256, 128, 64)
	SLICES(32, 16, 8)
	SLICES(4, 2, 1)
#undef SLICES
#undef SLICE
	if (failed) {
		bpf_ringbuf_discard_dynptr(&to, 0);
		record->captured = 0;
		return -1;
	}
	bpf_ringbuf_submit_dynptr(&to, flags);
	return 0;
}
#endif

/* A record without payload: bytes that were counted. */
static __always_inline int put_range(struct segment_record *record, __u32 sequence, __u32 length,
				     __u64 flags)
{
	struct segment_record range = *record;

	range.sequence = sequence;
	range.length = length;
	range.captured = 0;
	return bpf_ringbuf_output(&segments, &range, sizeof(range), flags);
}

#endif
