/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The STREAM layer: what becomes of a segment of a marked socket. */
#ifndef STREAMTAP_STREAM_H
#define STREAMTAP_STREAM_H

#include "copy.h"
#include "packet.h"

enum {
	FAIR_WINDOW_NS = 10000000, /* as long as a reader that keeps up takes to come back */
	RANGE_LENGTH = 1 << 30,	   /* keeps 32-bit sequence arithmetic unambiguous */
	RANGE_AGE_NS = 1000000000, /* a counted bulk flow is told of about once a second */
	BURST_PAUSE_NS = 20000000, /* as the pause that ends a burst of data in user space */
	BURST_BYTES = 65536,	   /* of a counted burst, told segment by segment */
};

/*
 * Count a segment that the policy does not copy. The first bytes of a burst are told segment by
 * segment, so that a chat keeps its shape; of a long burst one range grows here and is told when it
 * is interrupted, turns, or is a second old. Returns bytes whose range could not be told.
 */
static __always_inline __u32 count_range(struct flow *flow, struct segment_record *record,
					 __u32 direction, __u64 flags)
{
	struct range *range = &flow->range[direction & 1];
	__u32 sequence = record->sequence, length = record->length, lost = 0;
	__u64 now = record->time_ns;

	if (__sync_val_compare_and_swap(&range->busy, 0, 1) != 0)
		return put_range(record, sequence, length, flags) ? length : 0;
	if (flow->last_direction != direction || now - range->last_ns > BURST_PAUSE_NS)
		range->burst = 0;
	range->last_ns = now;
	range->burst += length;
	if (range->length) {
		__u32 end = range->sequence + range->length;
		int within = (int)(sequence - range->sequence) >= 0 && (int)(end - sequence) >= 0;

		if (within && range->burst > BURST_BYTES && range->length < RANGE_LENGTH &&
		    now - range->since_ns < RANGE_AGE_NS) {
			if ((int)(sequence + length - end) > 0)
				range->length = sequence + length - range->sequence;
			goto out;
		}
		if (put_range(record, range->sequence, range->length, flags))
			lost += range->length;
		range->length = 0;
	}
	if (range->burst > BURST_BYTES) {
		range->sequence = sequence;
		range->length = length;
		range->since_ns = now;
	} else if (put_range(record, sequence, length, flags)) {
		lost += length;
	}
out:
	__sync_lock_test_and_set(&range->busy, 0);
	return lost;
}

/* Above half full a flow may add only so much in a while; one greedy flow leaves room for others. */
static __always_inline int is_admitted(struct flow *flow, struct settings *set, __u64 now,
				       __u64 used, __u32 length)
{
	__u32 ring = set->ring_bytes;

	if (used + length < ring / 2)
		return 1;
	if (now - flow->window_ns > FAIR_WINDOW_NS) {
		flow->window_ns = now;
		flow->window_bytes = 0;
	}
	/* The header and the ring's own share count: small records fill a ring too. */
	flow->window_bytes += length + sizeof(struct segment_record) + 8;
	return flow->window_bytes <= ring / 16;
}

/*
 * Candidates cost a lookup until user space has decided; -1: this flow is not in scope. Both
 * directions may come here at once: the filters are set before the candidates are taken away, and
 * who finds none leaves the flow to the other.
 */
static __always_inline int settle(struct flow *flow)
{
	__u64 *decided = bpf_map_lookup_elem(&verdicts, &flow->process_id);
	__u64 candidates = *(volatile __u64 *)&flow->candidates;

	if (!decided || !candidates)
		return 0;
	candidates &= *decided;
	if (!candidates && !flow->filters)
		return -1;
	SET(flow->filters, candidates);
	*(volatile __u64 *)&flow->candidates = 0;
	return 0;
}

static __noinline int tell_orphan(struct __sk_buff *skb, struct flow *flow,
				  struct segment_record *record, __u32 offset, __u64 flags)
{
	struct orphan_tuple tuple = {};
	struct tcp_header tcp;
	__u8 version = 0;

	/* It came in with the listener: the child is told by its addresses. */
	if (!flow || bpf_skb_load_bytes(skb, 0, &version, 1))
		return -1;
	tuple.space = flow->space;
	if (version >> 4 == 4) {
		tuple.family = 4;
		bpf_skb_load_bytes(skb, 12, tuple.remote, 4);
		bpf_skb_load_bytes(skb, 16, tuple.local, 4);
	} else {
		tuple.family = 6;
		bpf_skb_load_bytes(skb, 8, tuple.remote, 16);
		bpf_skb_load_bytes(skb, 24, tuple.local, 16);
	}
	if (bpf_skb_load_bytes(skb, find_tcp(skb), &tcp, sizeof(tcp)))
		return -1;
	tuple.remote_port = NETWORK16(tcp.source);
	tuple.local_port = NETWORK16(tcp.destination);
	record->kind = RECORD_ORPHAN;
	record->flow_id = 0;
	return put(skb, record, &tuple, offset, flags);
}

static __always_inline int stream(struct __sk_buff *skb, __u32 direction)
{
	struct bpf_sock *sk = skb->sk;
	struct segment_record record = {};
	struct settings *set;
	struct counters *count;
	struct tcp_header tcp;
	struct flow *flow;
	__u32 offset, head, length, lost;
	__u64 used, flags;
	int failed;

	set = the_settings();
	if (!sk || !set || likely(!set->marked))
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	flow = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (likely(!flow))
		return 1;
	count = the_counters(flow->filters ? COUNTED_IN_SCOPE : COUNTED_CANDIDATES);
	if (!count)
		return 1;
	if (flow->candidates && settle(flow)) {
		bpf_sk_storage_delete(&flows, sk);
		return 1;
	}
	if (!((flow->filters | flow->candidates) & set->enabled))
		return 1;

	offset = find_tcp(skb);
	if (!offset || bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return 1;
	head = (tcp.offset >> 4) * 4;
	if (skb->len < offset + head)
		return 1;
	length = skb->len - offset - head;
	record.sequence = NETWORK32(tcp.sequence);
	if (tcp.flags & TCP_SYN) {
		record.sequence++;
		if (direction == DIRECTION_SENT && sk->state == STATE_SYN_SENT) {
			flow->origin[DIRECTION_SENT] = record.sequence;
			SET(flow->flags, FLOW_SYN_SENT);
		}
	}
	if (tcp.flags & TCP_RST)
		SET(flow->flags, FLOW_RESET);
	if (tcp.flags & TCP_FIN) {
		flow->fin[direction] = record.sequence + length;
		SET(flow->flags, direction == DIRECTION_SENT ? FLOW_FIN_SENT : FLOW_FIN_RECEIVED);
	}
	if (!length)
		return 1;

	if (flow->policy_epoch != set->policy_epoch) {
		struct policy *policy = bpf_map_lookup_elem(&policies, &flow->flow_id);

		flow->policy_epoch = set->policy_epoch;
		if (policy) {
			flow->mode = policy->mode;
			flow->head = policy->head;
		}
	}
	record.flow_id = flow->flow_id;
	record.time_ns = bpf_ktime_get_ns();
	record.acknowledgment = NETWORK32(tcp.acknowledgment);
	record.length = length;
	record.captured = length > MAX_PAYLOAD ? MAX_PAYLOAD : length;
	record.lost = flow->lost_segments[direction];
	record.tcp_flags = tcp.flags;
	record.kind = RECORD_SEGMENT;
	record.direction = direction;
	used = bpf_ringbuf_query(&segments, BPF_RB_AVAIL_DATA);
	flags = wake_flags(set, record.time_ns, used);
	ADD(count->segments, 1);
	ADD(count->seen_bytes, length);

	if (set->paused) {
		ADD(flow->seen[direction], length);
		ADD(flow->lost[direction], length);
		ADD(flow->lost_segments[direction], 1);
		ADD(count->lost_segments, 1);
		ADD(count->lost_bytes, length);
		return 1;
	}
	if (sk->state == STATE_LISTEN) {
		failed = tell_orphan(skb, flow, &record, offset + head, flags);
		ADD(count->captured_bytes, record.captured);
		if (failed) {
			ADD(count->lost_segments, 1);
			ADD(count->lost_bytes, length - record.captured);
		}
		return 1;
	}

	ADD(flow->seen[direction], length);
	if (flow->mode == POLICY_COUNT) {
		record.captured = 0;
	} else if (flow->mode == POLICY_HEAD) {
		__u64 had = flow->captured[direction];
		__u32 left = had < flow->head ? flow->head - had : 0;

		if (record.captured > left)
			record.captured = left;
	}
	if (record.captured == 0) {
		lost = count_range(flow, &record, direction, flags);
		flow->last_direction = direction;
		ADD(flow->counted[direction], length);
		ADD(count->counted_bytes, length);
		if (lost) {
			ADD(flow->lost_segments[direction], 1);
			ADD(count->lost_segments, 1);
		}
		return 1;
	}
	flow->last_direction = direction;
	if (!is_admitted(flow, set, record.time_ns, used, record.captured) ||
	    put(skb, &record, 0, offset + head, flags)) {
		if (record.captured == length)
			record.captured = 0;
		ADD(flow->lost[direction], length - record.captured);
		ADD(flow->lost_segments[direction], 1);
		ADD(count->lost_segments, 1);
		ADD(count->lost_bytes, length - record.captured);
	} else if (record.captured < length) {
		ADD(flow->counted[direction], length - record.captured);
		ADD(count->counted_bytes, length - record.captured);
	}
	ADD(flow->captured[direction], record.captured);
	ADD(count->captured_bytes, record.captured);
	return 1;
}

#endif
