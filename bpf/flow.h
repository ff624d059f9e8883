/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The FLOW_ESTABLISHED layer: marking sockets, and telling of connections, new and already open. */
#ifndef STREAMTAP_FLOW_H
#define STREAMTAP_FLOW_H

#include "identity.h"

enum { POSITION_TRIES = 16 }; /* one or two do, unless a segment is on its way each time */

static __always_inline void lose_mark(void)
{
	struct counters *count = the_counters(COUNTED_IN_SCOPE);

	if (count)
		ADD(count->marks_lost, 1);
}

/* Mark a socket for the task that acts on it; `sk` is what sk_storage_get takes at this hook. */
#define CLAIM(sk, context)                                                                      \
	({                                                                                      \
		struct task_struct *task_ = (void *)bpf_get_current_task();                     \
		struct settings *set_ = the_settings();                                         \
		struct flow *flow_ = 0;                                                         \
		__u64 candidates_ = 0, filters_ = 0;                                            \
		if (set_ && set_->enabled)                                                      \
			filters_ = judge_task(task_, set_, &candidates_);                       \
		if (filters_ | candidates_) {                                                   \
			flow_ = bpf_sk_storage_get(&flows, sk, 0, BPF_SK_STORAGE_GET_F_CREATE); \
			if (flow_) {                                                            \
				flow_->filters = filters_;                                      \
				flow_->candidates = candidates_;                                \
				flow_->flow_id = bpf_get_socket_cookie(context);                \
				flow_->space = bpf_get_netns_cookie(context);                   \
				describe(flow_, task_);                                         \
			} else {                                                                \
				lose_mark();                                                    \
			}                                                                       \
		}                                                                               \
		flow_;                                                                          \
	})

/* Keeps the compiler from reading two fields through one moved pointer, which contexts forbid. */
#define CONTEXT(field) (*(volatile __typeof__(field) *)&(field))

static __always_inline void copy_address(unsigned char *to, const __u32 *from)
{
	__builtin_memcpy(to, from, 16);
}

static __always_inline void describe_opened(struct opened_record *to, struct flow *flow)
{
	__builtin_memset(to, 0, sizeof(*to));
	to->kind = RECORD_OPENED;
	to->flow_id = flow->flow_id;
	to->time_ns = bpf_ktime_get_ns();
	to->space = flow->space;
	to->process_id = flow->process_id;
	to->filters = flow->filters;
	to->candidates = flow->candidates;
	to->cgroup_id = flow->cgroup_id;
	to->passed[0] = flow->passed[0];
	to->passed[1] = flow->passed[1];
	to->sequence[0] = flow->origin[0];
	to->sequence[1] = flow->origin[1];
	to->pid = flow->pid;
	to->uid = flow->uid;
	to->flags = flow->flags;
	__builtin_memcpy(to->comm, flow->comm, COMM_LENGTH);
}

static __always_inline void reset_counters(struct flow *flow)
{
	__builtin_memset(flow->seen, 0, sizeof(flow->seen));
	__builtin_memset(flow->captured, 0, sizeof(flow->captured));
	__builtin_memset(flow->lost, 0, sizeof(flow->lost));
	__builtin_memset(flow->counted, 0, sizeof(flow->counted));
	__builtin_memset(flow->range, 0, sizeof(flow->range));
	__builtin_memset(flow->lost_segments, 0, sizeof(flow->lost_segments));
}

static __always_inline void open_flow(struct bpf_sock_ops *ctx, struct flow *flow, int active)
{
	struct opened_record *opened;
	struct tcp_sock *tcp;
	struct bpf_sock *sk = ctx->sk;
	__u32 family = ctx->family;
	__u32 address[4] = {}, other[4] = {}, keep = flow->flags & FLOW_SYN_SENT;

	if (!sk)
		return;
	if (active) {
		/* With TCP Fast Open the data is ahead of us: the SYN record knows better. */
		if (!keep)
			flow->origin[DIRECTION_SENT] = ctx->snd_nxt;
	} else {
		/* The clone brought the listener's values along. */
		reset_counters(flow);
		flow->origin[DIRECTION_SENT] = ctx->snd_nxt;
		keep = 0;
	}
	flow->origin[DIRECTION_RECEIVED] = ctx->rcv_nxt;
	flow->flow_id = bpf_get_socket_cookie(ctx);
	flow->flags = keep | FLOW_OPENED | (active ? FLOW_ACTIVE : 0);
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp && FIELD_EXISTS(tcp->is_mptcp) && READ(tcp->is_mptcp))
		flow->flags |= FLOW_MULTIPATH;

	opened = reserve_control(sizeof(*opened));
	if (!opened)
		return;
	describe_opened(opened, flow);
	opened->local_port = ctx->local_port;
	opened->remote_port = NETWORK32(ctx->remote_port);
	if (family == FAMILY_INET6) {
		opened->family = 6;
		for (int i = 0; i < 4; i++) {
			address[i] = CONTEXT(ctx->local_ip6[i]);
			other[i] = CONTEXT(ctx->remote_ip6[i]);
		}
	} else {
		opened->family = 4;
		address[0] = CONTEXT(ctx->local_ip4);
		other[0] = CONTEXT(ctx->remote_ip4);
	}
	copy_address(opened->local, address);
	copy_address(opened->remote, other);
	bpf_ringbuf_submit(opened, 0);
}

static __always_inline void read_addresses(struct opened_record *to, struct sock *sk)
{
	to->local_port = READ(sk->__sk_common.skc_num);
	to->remote_port = NETWORK16(READ(sk->__sk_common.skc_dport));
	if (READ(sk->__sk_common.skc_family) == FAMILY_INET6) {
		to->family = 6;
		bpf_probe_read_kernel(to->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(to->remote, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		to->family = 4;
		bpf_probe_read_kernel(to->local, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_probe_read_kernel(to->remote, 4, &sk->__sk_common.skc_daddr);
	}
}

struct position {
	__u64 passed[2];   /* payload bytes gone by, by direction */
	__u32 sequence[2]; /* of the next payload byte, or of the FIN that has gone by */
	__u32 flags;	   /* FLOW_ACTIVE, FLOW_FIN_SENT, FLOW_FIN_RECEIVED */
};

/*
 * Where a connection stands. The socket is not locked: it is read until the readings agree. They
 * do not while a segment is on its way down, when bytes_sent is ahead of snd_nxt: of such a one
 * the hooks may have seen nothing, and what they see next comes after it.
 */
static __always_inline void read_position(struct position *to, struct tcp_sock *tcp, int state)
{
	__u32 snd_una, snd_nxt = 0, rcv_nxt = 0, unsent = 0, fin = 0, flags = 0;
	int closing = state == STATE_FIN_WAIT1 || state == STATE_FIN_WAIT2 ||
		      state == STATE_CLOSING || state == STATE_LAST_ACK;
	__u64 acked, received = 0, sent = 0, numbered = 0;
	/* What a listener accepts has its backlog from it. Only with listen(0) that tells nothing. */
	__u64 syn = READ(((struct sock *)tcp)->sk_max_ack_backlog) == 0;

	for (int i = 0; i < POSITION_TRIES; i++) {
		rcv_nxt = READ(tcp->rcv_nxt);
		snd_nxt = READ(tcp->snd_nxt);
		received = READ(tcp->bytes_received);
		sent = READ(tcp->bytes_sent) - READ(tcp->bytes_retrans);
		acked = READ(tcp->bytes_acked);
		snd_una = READ(tcp->snd_una);
		unsent = READ(tcp->write_seq) - snd_nxt;
		fin = closing && !unsent;
		/* What has a number: payload, and the SYN of the end that made the connection. */
		numbered = acked + (__u32)(snd_nxt - snd_una) - fin;
		if (numbered - sent == syn && rcv_nxt == READ(tcp->rcv_nxt) &&
		    received == READ(tcp->bytes_received) && snd_nxt == READ(tcp->snd_nxt))
			break;
	}
	if (syn && (numbered != sent || unsent)) {
		flags |= FLOW_ACTIVE;
		numbered--;
	}
	if (fin)
		flags |= FLOW_FIN_SENT;
	to->passed[DIRECTION_SENT] = sent > numbered ? sent : numbered;
	to->sequence[DIRECTION_SENT] = snd_nxt - fin + (to->passed[DIRECTION_SENT] - numbered);
	/* bytes_received counts the peer's FIN. */
	fin = state == STATE_CLOSE_WAIT || state == STATE_LAST_ACK || state == STATE_CLOSING;
	if (fin)
		flags |= FLOW_FIN_RECEIVED;
	to->passed[DIRECTION_RECEIVED] = received - fin;
	to->sequence[DIRECTION_RECEIVED] = rcv_nxt - fin;
	to->flags = flags;
}

static __always_inline int is_open(int state)
{
	return state != STATE_LISTEN && state != STATE_CLOSE && state != STATE_SYN_SENT &&
	       state != STATE_SYN_RECEIVED && state != STATE_TIME_WAIT;
}

/*
 * Mark a socket that exists already for a task that holds it; 1 if a connection was told. One that
 * is marked for another filter is told again, for it is in one more.
 */
static __always_inline int adopt(struct sock *sk, struct task_struct *task)
{
	struct opened_record *opened;
	struct settings *set = the_settings();
	struct position position;
	struct tcp_sock *tcp;
	struct process *process;
	struct net *net;
	struct flow *flow;
	__u64 filters, candidates;
	int state;

	if (!set || READ(sk->sk_protocol) != PROTOCOL_TCP)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	filters = judge_task(task, set, &candidates);
	if (!(filters | candidates))
		return 0;
	state = READ(sk->__sk_common.skc_state);
	if (set->new_only && is_open(state))
		return 0;
	flow = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (flow) {
		if (!((filters & ~flow->filters) |
		      (candidates & ~(flow->filters | flow->candidates))))
			return 0;
		SET(flow->filters, filters);
		if (candidates & ~flow->filters) {
			process = bpf_map_lookup_elem(&processes, &(__u32){READ(task->tgid)});
			if (process)
				flow->process_id = process->process_id;
			SET(flow->candidates, candidates & ~flow->filters);
		}
		if (!is_open(state) || !(flow->flags & FLOW_OPENED))
			return 0;
		goto tell;
	}
	flow = bpf_sk_storage_get(&flows, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!flow) {
		lose_mark();
		return 0;
	}
	net = READ(sk->__sk_common.skc_net.net);
	flow->filters = filters;
	flow->candidates = candidates;
	flow->flow_id = bpf_get_socket_cookie(sk);
	flow->space = READ(net->net_cookie);
	describe(flow, task);
	if (!is_open(state))
		return 0;
	read_position(&position, tcp, state);
	SET(flow->flags, FLOW_OPENED | FLOW_MIDSTREAM | position.flags);
	for (int i = 0; i < 2; i++) {
		flow->passed[i] = position.passed[i];
		flow->origin[i] = position.sequence[i];
		flow->fin[i] = position.sequence[i];
	}
tell:
	opened = reserve_control(sizeof(*opened));
	if (!opened)
		return 0;
	describe_opened(opened, flow);
	read_addresses(opened, sk);
	bpf_ringbuf_submit(opened, 0);
	return 1;
}

#endif
