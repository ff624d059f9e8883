// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The callouts: which sockets belong to a monitored application, and what passes through them.
 *
 * Identity is decided at exec and kept per process; a socket is marked where it is made, connected
 * or set listening (FLOW_ESTABLISHED layer); the packet hooks copy the payload of marked sockets to
 * a ring (STREAM layer). Everything else costs one storage lookup. User space is asked only where
 * the kernel cannot decide (patterns, scripts, a program file that was just replaced): such a
 * process is a candidate, watched at once, and its records are kept or dropped later.
 */
#include "flow.h"
#include "identity.h"
#include "stream.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Types that no map or global names would be missing from BTF, where a test compares them. */
const struct segment_record *segment_layout;
const struct orphan_tuple *orphan_layout;
const struct opened_record *opened_layout;
const struct closed_record *closed_layout;
const struct process_record *process_layout;
const struct flow_listing *listing_layout;
const enum record_kind *kind_layout;
const enum flow_flag *flow_flag_layout;
const enum process_flag *process_flag_layout;
const enum policy_mode *mode_layout;
const enum scope_use *use_layout;
const enum direction *direction_layout;

/* ---- identity -------------------------------------------------------------------------- */

SEC("tp_btf/sched_process_exec")
int process_exec(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *binprm = (void *)ctx[2];
	__u32 tgid = READ(task->tgid);
	struct process *before = bpf_map_lookup_elem(&processes, &tgid);
	struct process after = {};

	judge_program(task, binprm, &after);
	if (before) {
		after.inherited = before->inherited;
		after.own = before->own;
		/* env, or a shim, runs the interpreter that it finds by an exec of its own. */
		after.scripts |= before->scripts;
		after.candidates |= before->scripts & ~after.executable;
	}
	if (!(after.executable | after.inherited | after.own | after.candidates)) {
		if (before)
			bpf_map_delete_elem(&processes, &tgid);
		return 0;
	}
	if (after.candidates)
		tell_process(task, &after, binprm, RECORD_EXEC);
	track(tgid, &after, BPF_ANY);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int process_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	__u32 parent_tgid = READ(parent->tgid), child_tgid = READ(child->tgid);
	struct process *process, copy;

	if (parent_tgid == child_tgid)
		return 0;
	process = bpf_map_lookup_elem(&processes, &parent_tgid);
	if (!process)
		return 0;
	copy = *process;
	copy.own = 0;
	if (copy.executable | copy.inherited | copy.candidates)
		bpf_map_update_elem(&processes, &child_tgid, &copy, BPF_ANY);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int process_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct signal_struct *signal = READ(task->signal);
	__u32 tgid = READ(task->tgid);

	/* The leader may exit before its threads do. */
	if (READ(signal->live.counter) == 0)
		bpf_map_delete_elem(&processes, &tgid);
	return 0;
}

/*
 * Judge the programs that run already, for the filters being added. What is known of a process is
 * added to in place: an entry that exec or fork makes meanwhile is newer, and judged for all. A
 * process that is asked about once more has a new process_id: the verdict for the old one does not
 * speak of the new filters. A byte is written for each that is told, so that the reader of the
 * iterator can stop to make room.
 */
SEC("iter/task")
int seed_processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct settings *set = the_settings();
	struct process process = {}, *before;
	const char told = 1;
	__u64 fresh;
	__u32 tgid;

	if (!task || !set || !READ(task->mm) || READ(task->pid) != READ(task->tgid))
		return 0;
	judge_program(task, 0, &process);
	process.executable &= set->seeding;
	process.candidates &= set->seeding;
	process.scripts &= set->seeding;
	if (!(process.executable | process.candidates))
		return 0;
	process.flags = PROCESS_EXISTING;
	tgid = READ(task->tgid);
	before = bpf_map_lookup_elem(&processes, &tgid);
	if (!before) {
		if (track(tgid, &process, BPF_NOEXIST) == 0 && process.candidates)
			goto tell;
		return 0;
	}
	settle_process(before);
	before->executable |= process.executable;
	before->scripts |= process.scripts;
	before->candidates &= ~before->executable;
	fresh = process.candidates & ~(before->executable | before->candidates);
	if (!fresh)
		return 0;
	before->flags = PROCESS_EXISTING;
	before->process_id = process.process_id;
	before->candidates |= fresh;
	process.candidates = before->candidates;
tell:
	tell_process(task, &process, 0, RECORD_EXEC);
	bpf_seq_write(ctx->meta->seq, &told, sizeof(told));
	return 0;
}

/* Forget the filters that exist no more. */
SEC("iter/bpf_map_elem")
int sweep_processes(struct bpf_iter__bpf_map_elem *ctx)
{
	struct settings *set = the_settings();
	struct process *process = ctx->value;

	if (!set || !process)
		return 0;
	process->executable &= set->known;
	process->inherited &= set->known;
	process->own &= set->known;
	process->candidates &= set->known;
	process->scripts &= set->known;
	return 0;
}

/* ---- FLOW_ESTABLISHED layer ------------------------------------------------------------ */

SEC("cgroup/sock_create")
int socket_created(struct bpf_sock *ctx)
{
	if (ctx->type != TYPE_STREAM || ctx->protocol != PROTOCOL_TCP)
		return 1;
	if (ctx->family != FAMILY_INET && ctx->family != FAMILY_INET6)
		return 1;
	CLAIM(ctx, ctx);
	return 1;
}

SEC("sockops")
int flow_established(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct flow *flow;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sk = ctx->sk;
		flow = sk ? bpf_sk_storage_get(&flows, sk, 0, 0) : 0;
		if (flow)
			reset_counters(flow); /* a socket may be connected a second time */
		else if (sk)
			CLAIM(sk, ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		flow = sk ? bpf_sk_storage_get(&flows, sk, 0, 0) : 0;
		if (flow)
			open_flow(ctx, flow, ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB);
		break;
	}
	return 1;
}

SEC("tp_btf/inet_sock_set_state")
int flow_closed(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old_state = ctx[1], new_state = ctx[2];
	struct closed_record *closed;
	struct tcp_sock *tcp;
	struct flow *flow;

	if (new_state != STATE_CLOSE)
		return 0;
	flow = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (!flow || !(flow->flags & FLOW_OPENED) || (flow->flags & FLOW_CLOSED))
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	SET(flow->flags, FLOW_CLOSED);
	closed = reserve_control(sizeof(*closed));
	if (!closed)
		return 0;
	__builtin_memset(closed, 0, sizeof(*closed));
	closed->flow_id = flow->flow_id;
	closed->time_ns = bpf_ktime_get_ns();
	closed->bytes_acked = READ(tcp->bytes_acked);
	closed->bytes_received = READ(tcp->bytes_received);
	closed->snd_una = READ(tcp->snd_una);
	closed->snd_nxt = READ(tcp->snd_nxt);
	closed->rcv_nxt = READ(tcp->rcv_nxt);
	for (int i = 0; i < 2; i++) {
		closed->seen[i] = flow->seen[i];
		closed->captured[i] = flow->captured[i];
		closed->lost[i] = flow->lost[i];
		closed->counted[i] = flow->counted[i];
		closed->range_sequence[i] = flow->range[i].sequence;
		closed->range_length[i] = flow->range[i].length;
		closed->origin[i] = flow->origin[i];
		closed->fin[i] = flow->fin[i];
		closed->lost_segments[i] = flow->lost_segments[i];
	}
	closed->flags = flow->flags;
	closed->kind = RECORD_CLOSED;
	closed->old_state = old_state;
	bpf_ringbuf_submit(closed, 0);
	return 0;
}

/* ---- connections that are open already ------------------------------------------------- */

/* Writes a byte for each connection, as above. */
SEC("iter/task_file")
int adopt_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	const char told = 1;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	if (adopt(sk, task))
		bpf_seq_write(ctx->meta->seq, &told, sizeof(told));
	return 0;
}

/* Optional: a descriptor that came over a Unix socket is marked when it is first used. */
SEC("tp_btf/sock_send_length")
int socket_sent(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (!may_be_in_scope() || sk->sk_protocol != PROTOCOL_TCP ||
	    bpf_sk_storage_get(&flows, sk, 0, 0))
		return 0;
	adopt(sk, (struct task_struct *)bpf_get_current_task());
	return 0;
}

SEC("tp_btf/sock_recv_length")
int socket_received(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (!may_be_in_scope() || sk->sk_protocol != PROTOCOL_TCP ||
	    bpf_sk_storage_get(&flows, sk, 0, 0))
		return 0;
	adopt(sk, (struct task_struct *)bpf_get_current_task());
	return 0;
}

/* Unmark sockets that no filter in force is interested in any more. */
SEC("iter/bpf_sk_storage_map")
int sweep_flows(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct settings *set = the_settings();
	struct flow *flow = ctx->value;
	struct sock *sk = ctx->sk;

	if (!sk || !flow || !set)
		return 0;
	flow->filters &= set->enabled;
	flow->candidates &= set->enabled;
	if (!(flow->filters | flow->candidates))
		bpf_sk_storage_delete(&flows, sk);
	return 0;
}

/* One flow_listing for each marked connection of the map that the iterator is given. */
SEC("iter/bpf_sk_storage_map")
int list_flows(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct flow_listing listing = {};
	struct seq_file *seq = ctx->meta->seq;
	struct flow *flow = ctx->value;
	struct sock *sk = ctx->sk;
	struct position position;
	struct tcp_sock *tcp;

	if (!sk || !flow)
		return 0;
	if (!(flow->flags & FLOW_OPENED) || (flow->flags & FLOW_CLOSED))
		return 0;
	describe_opened(&listing.opened, flow);
	read_addresses(&listing.opened, sk);
	for (int i = 0; i < 2; i++) {
		listing.seen[i] = flow->seen[i];
		listing.captured[i] = flow->captured[i];
		listing.lost[i] = flow->lost[i];
		listing.range_sequence[i] = flow->range[i].sequence;
		listing.range_length[i] = flow->range[i].length;
		listing.lost_segments[i] = flow->lost_segments[i];
	}
	listing.state = READ(sk->__sk_common.skc_state);
	listing.mode = flow->mode;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp) {
		read_position(&position, tcp, listing.state);
		listing.totals[0] = position.passed[0];
		listing.totals[1] = position.passed[1];
	}
	bpf_seq_write(seq, &listing, sizeof(listing));
	return 0;
}

/* ---- STREAM layer ---------------------------------------------------------------------- */

SEC("cgroup_skb/ingress")
int stream_received(struct __sk_buff *ctx)
{
	return stream(ctx, DIRECTION_RECEIVED);
}

SEC("cgroup_skb/egress")
int stream_sent(struct __sk_buff *ctx)
{
	return stream(ctx, DIRECTION_SENT);
}
