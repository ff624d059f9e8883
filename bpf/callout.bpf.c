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
#include <linux/bpf.h>
#include "kernel_types.h"
#include "helpers.h"
#include "callout.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum {
	FAMILY_INET = 2,
	FAMILY_INET6 = 10,
	PROTOCOL_TCP = 6,
	TYPE_STREAM = 1,
	STATE_ESTABLISHED = 1,
	STATE_SYN_SENT = 2,
	STATE_SYN_RECEIVED = 3,
	STATE_FIN_WAIT1 = 4,
	STATE_FIN_WAIT2 = 5,
	STATE_TIME_WAIT = 6,
	STATE_CLOSE = 7,
	STATE_CLOSE_WAIT = 8,
	STATE_LAST_ACK = 9,
	STATE_LISTEN = 10,
	STATE_CLOSING = 11,
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
	MAX_EXTENSION_HEADERS = 8,
	MAX_PATH_DEPTH = 40,
	MAX_CGROUP_DEPTH = 16,
	MAX_PAYLOAD = 524287, /* GRO_MAX_SIZE; what is longer is counted as lost */
	FAIR_WINDOW_NS = 10000000,
	WAKE_PAUSE_NS = 200000, /* between two wake-ups because of a full ring */
	RANGE_LENGTH = 1 << 30, /* keeps 32-bit sequence arithmetic unambiguous */
	RANGE_AGE_NS = 1000000000,
	BURST_PAUSE_NS = 20000000,
	BURST_BYTES = 65536, /* of a counted burst, told segment by segment */
	POSITION_TRIES = 16,
	SCRATCH_BYTES = 32768,
	SCRATCH_SLOTS = 4,
};

/* One direction of a flow whose bytes are counted, not copied: what was not told yet. */
struct range {
	__u64 since_ns;
	__u64 last_ns;
	__u64 burst; /* bytes since the direction last turned or paused */
	__u32 sequence;
	__u32 length;
	__u32 busy;
	__u32 reserved;
};

/* The flow context: lives and dies with the socket. Written by the kernel side only. */
struct flow {
	__u64 flow_id;
	__u64 space;
	__u64 process_id;
	__u64 filters;
	__u64 candidates;
	__u64 cgroup_id;
	__u64 passed[2];
	__u64 seen[2];
	__u64 captured[2];
	__u64 lost[2];
	__u64 counted[2];
	__u64 window_ns;
	__u64 window_bytes;
	struct range range[2];
	__u32 lost_segments[2];
	__u32 origin[2];
	__u32 fin[2];
	__u32 pid;
	__u32 uid;
	__u32 flags;
	__u32 policy_epoch;
	__u32 mode;
	__u32 head;
	__u32 last_direction;
	__u32 reserved;
	char comm[COMM_LENGTH];
};

struct name_key {
	char name[NAME_LENGTH];
};

struct comm_key {
	char comm[COMM_LENGTH];
};

#define HASH(name_, key_, value_, entries)       \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, entries);    \
		__type(key, key_);               \
		__type(value, value_);           \
	} name_ SEC(".maps")

HASH(apps, struct app_key, __u64, 4096);
HASH(names, struct name_key, __u64, 1024);   /* programs: by file name */
HASH(scripts, struct comm_key, __u64, 1024); /* scripts: comm is their file name, cut */
HASH(comms, struct comm_key, __u64, 256);
HASH(uids, __u32, __u64, 256);
HASH(cgroups, __u64, __u64, 256);
HASH(processes, __u32, struct process, 65536);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);   /* process_id */
	__type(value, __u64); /* the candidates that do match */
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* flow_id */
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} segments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} control SEC(".maps");

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

static __always_inline struct settings *the_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline struct counters *the_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

#define ADD(field, amount) __sync_fetch_and_add(&(field), amount)

static __always_inline void copy_comm(char *to, struct task_struct *task)
{
	bpf_probe_read_kernel_str(to, COMM_LENGTH, &task->comm);
}

/* ---- identity ---------------------------------------------------------------------------- */

static __always_inline void read_app_key(struct task_struct *task, struct app_key *key)
{
	struct mm_struct *mm = READ(task->mm);
	struct file *file = READ(mm->exe_file);
	struct inode *inode = READ(file->f_inode);
	struct super_block *super = READ(inode->i_sb);

	key->inode = READ(inode->i_ino);
	key->device = READ(super->s_dev);
}

static __always_inline void read_base_name(struct task_struct *task, struct name_key *key)
{
	struct mm_struct *mm = READ(task->mm);
	struct file *file = READ(mm->exe_file);
	struct dentry *dentry = READ(file->f_path.dentry);

	__builtin_memset(key, 0, sizeof(*key));
	bpf_probe_read_kernel_str(key->name, sizeof(key->name), READ(dentry->d_name.name));
}

/*
 * Whether two pointers are equal, in a way that leaves the verifier nothing to remember of either:
 * in a loop its states would differ from turn to turn and be followed one by one.
 */
static __always_inline int same(const void *a, const void *b)
{
	__u64 difference = (__u64)a ^ (__u64)b;

	asm volatile("" : "+r"(difference));
	return difference == 0;
}

/*
 * The path of the program as its process sees it: components from the leaf up to the process's
 * root, across mounts. What is unlinked keeps its last name. (A global function is verified once a
 * program, however often it is called.)
 */
__noinline int read_path(__u64 of, struct process_record *to)
{
	struct task_struct *task = (void *)of;
	struct mm_struct *mm = READ(task->mm);
	struct file *file = READ(mm->exe_file);
	struct dentry *dentry = READ(file->f_path.dentry);
	struct vfsmount *vfsmount = READ(file->f_path.mnt);
	struct fs_struct *fs = READ(task->fs);
	struct dentry *root = READ(fs->root.dentry);
	struct vfsmount *root_mount = READ(fs->root.mnt);
	__u32 position = 0;

	if (!to)
		return 0;
	for (int depth = 0; depth < MAX_PATH_DEPTH; depth++) {
		struct dentry *parent;
		long length;

		if (same(dentry, 0) || (same(dentry, root) && same(vfsmount, root_mount)))
			break;
		if (same(dentry, READ(vfsmount->mnt_root))) {
			struct mount *mount =
				(void *)vfsmount -
				__builtin_preserve_field_info(((struct mount *)0)->mnt, 0);
			struct mount *above = READ(mount->mnt_parent);

			if (same(above, mount))
				break;
			dentry = READ(mount->mnt_mountpoint);
			vfsmount = &above->mnt;
			continue;
		}
		parent = READ(dentry->d_parent);
		if (same(parent, dentry))
			break;
		if (position >= PATH_LENGTH)
			break;
		length = bpf_probe_read_kernel_str(&to->path[position], COMPONENT_LENGTH,
						   READ(dentry->d_name.name));
		if (length <= 0)
			break;
		/* Read back, it is a number unknown to the verifier, as at any other turn. */
		length += position;
		bpf_probe_read_kernel(&position, sizeof(position), &length);
		position &= PATH_LENGTH * 2 - 1;
		dentry = parent;
	}
	return position;
}

static __always_inline __u32 read_arguments(struct task_struct *task, struct process_record *to)
{
	struct mm_struct *mm = READ(task->mm);
	unsigned long start = READ(mm->arg_start);
	unsigned long length = READ(mm->arg_end) - start;

	if (length > ARGUMENTS_LENGTH - 1)
		length = ARGUMENTS_LENGTH - 1;
	asm volatile("" : "+r"(length));
	length &= ARGUMENTS_LENGTH - 1;
	if (bpf_probe_read_user(to->arguments, length, (void *)start))
		return 0;
	return length;
}

/* Space for a control record, or null and a count. */
static __always_inline void *reserve_control(__u32 length)
{
	void *record = bpf_ringbuf_reserve(&control, length, 0);

	if (!record) {
		struct counters *count = the_counters();

		if (count)
			count->control_lost++;
	}
	return record;
}

/* Tell user space of a process: who it is, by the kernel's own record. */
static __noinline int tell_process(struct task_struct *task, struct process *process,
				   struct linux_binprm *binprm, __u32 kind)
{
	struct process_record *record;
	struct app_key key = {};
	struct cred *cred;

	record = reserve_control(sizeof(*record));
	if (!record)
		return 0;
	read_app_key(task, &key);
	cred = READ(task->real_cred);
	record->process_id = process->process_id;
	record->time_ns = bpf_ktime_get_ns();
	record->inode = key.inode;
	record->candidates = process->candidates;
	record->device = key.device;
	record->reserved_word = 0;
	record->pid = READ(task->tgid);
	record->uid = READ(cred->uid.val);
	record->flags = process->flags;
	record->filename_length = 0;
	record->arguments_length = 0;
	__builtin_memset(record->comm, 0, sizeof(record->comm));
	copy_comm(record->comm, task);
	record->kind = kind;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	/* Read, not passed on: a global function takes a plain number only. */
	record->path_length = read_path((__u64)READ(task->group_leader), record);
	if (binprm) {
		long length = bpf_probe_read_kernel_str(record->filename, FILENAME_LENGTH,
							READ(binprm->filename));
		record->filename_length = length > 0 ? length : 0;
		record->arguments_length = read_arguments(task, record);
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline __u64 value_of(void *map, const void *key)
{
	__u64 *value = bpf_map_lookup_elem(map, key);

	return value ? *value : 0;
}

/* What the program of a task says: the filters that match, and those to be decided. */
static __always_inline void judge_program(struct task_struct *task, struct linux_binprm *binprm,
					  struct process *process)
{
	struct settings *set = the_settings();
	struct app_key key = {};
	struct name_key name;
	struct comm_key comm = {};

	read_app_key(task, &key);
	read_base_name(task, &name);
	copy_comm(comm.comm, task);
	process->executable = value_of(&apps, &key);
	process->scripts = value_of(&scripts, &comm);
	process->candidates = value_of(&names, &name) | process->scripts;
	if (set)
		process->candidates |= set->ask;
	process->candidates &= ~process->executable;
	process->process_id = bpf_ktime_get_ns() ^ ((__u64)READ(task->tgid) << 40);
	if (binprm && READ(binprm->filename) != READ(binprm->interp))
		process->flags |= PROCESS_SCRIPT;
}

static __always_inline __u64 cgroup_filters(struct task_struct *task)
{
	struct css_set *css_set = READ(task->cgroups);
	struct cgroup *group = READ(css_set->dfl_cgrp);
	int level = READ(group->level);
	__u64 filters = 0;

	for (int i = 0; i < MAX_CGROUP_DEPTH; i++) {
		__u64 id = 0;

		if (i > level)
			break;
		if (FIELD_EXISTS(group->ancestors)) {
			struct cgroup *above = 0;
			struct kernfs_node *node;

			bpf_probe_read_kernel(&above, sizeof(above), &group->ancestors[i]);
			node = READ(above->kn);
			id = READ(node->id);
		} else {
			struct cgroup___before_6_1 *before = (void *)group;

			bpf_probe_read_kernel(&id, sizeof(id), &before->ancestor_ids[i]);
		}
		filters |= value_of(&cgroups, &id);
	}
	return filters;
}

static __always_inline __u64 cgroup_id_of(struct task_struct *task)
{
	struct css_set *css_set = READ(task->cgroups);
	struct cgroup *group = READ(css_set->dfl_cgrp);
	struct kernfs_node *node = READ(group->kn);

	return READ(node->id);
}

/* Filters that a task is subject to now; `candidates` gets those still to be decided. */
static __always_inline __u64 judge_task(struct task_struct *task, struct settings *set,
					__u64 *candidates)
{
	__u32 tgid = READ(task->tgid);
	struct process *process = bpf_map_lookup_elem(&processes, &tgid);
	__u64 filters = 0;

	*candidates = 0;
	if (process) {
		if (process->candidates) {
			__u64 *decided = bpf_map_lookup_elem(&verdicts, &process->process_id);

			if (decided) {
				process->executable |= *decided;
				process->candidates = 0;
			}
		}
		filters = process->executable | process->inherited | process->own;
		*candidates = process->candidates & set->enabled;
	}
	if (set->use & USE_COMM) {
		struct comm_key key = {};

		copy_comm(key.comm, task);
		filters |= value_of(&comms, &key);
	}
	if (set->use & USE_UID) {
		struct cred *cred = READ(task->real_cred);
		__u32 uid = READ(cred->uid.val);

		filters |= value_of(&uids, &uid);
	}
	if (set->use & USE_CGROUP)
		filters |= cgroup_filters(task);
	return filters & set->enabled;
}

/* Fill the context of a socket that a task in scope has made, and announce the task once. */
static __noinline int describe(struct flow *flow, struct task_struct *task)
{
	__u32 tgid = READ(task->tgid);
	struct process *process = bpf_map_lookup_elem(&processes, &tgid);
	struct cred *cred = READ(task->real_cred);
	struct settings *set = the_settings();

	if (!flow)
		return 0;
	if (!process) {
		struct process fresh = {};

		fresh.process_id = bpf_ktime_get_ns() ^ ((__u64)tgid << 40);
		bpf_map_update_elem(&processes, &tgid, &fresh, BPF_NOEXIST);
		process = bpf_map_lookup_elem(&processes, &tgid);
	}
	if (process) {
		flow->process_id = process->process_id;
		if (!(process->flags & PROCESS_ANNOUNCED)) {
			process->flags |= PROCESS_ANNOUNCED;
			tell_process(task, process, 0, RECORD_OWNER);
		}
	}
	flow->pid = tgid;
	flow->uid = READ(cred->uid.val);
	flow->cgroup_id = cgroup_id_of(task);
	copy_comm(flow->comm, task);
	if (set) {
		flow->mode = set->mode;
		flow->head = set->head;
	}
	return 0;
}

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
	bpf_map_update_elem(&processes, &tgid, &after, BPF_ANY);
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

/* Judge the programs that run already; an entry that exec or fork has made meanwhile is newer. */
SEC("iter/task")
int seed_processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process process = {};
	__u32 tgid;

	if (!task || !READ(task->mm) || READ(task->pid) != READ(task->tgid))
		return 0;
	judge_program(task, 0, &process);
	if (!(process.executable | process.candidates))
		return 0;
	process.flags = PROCESS_EXISTING;
	tgid = READ(task->tgid);
	if (bpf_map_update_elem(&processes, &tgid, &process, BPF_NOEXIST) == 0 &&
	    process.candidates)
		tell_process(task, &process, 0, RECORD_EXEC);
	return 0;
}

/* ---- FLOW_ESTABLISHED layer ------------------------------------------------------------- */

static __always_inline void lose_mark(void)
{
	struct counters *count = the_counters();

	if (count)
		count->marks_lost++;
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
	flow->flags |= FLOW_CLOSED;
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

/* ---- connections that are open already ---------------------------------------------------- */

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

/* Mark a socket that exists already for a task that holds it. */
static __always_inline int adopt(struct sock *sk, struct task_struct *task)
{
	struct opened_record *opened;
	struct settings *set = the_settings();
	struct position position;
	struct tcp_sock *tcp;
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
	if (bpf_sk_storage_get(&flows, sk, 0, 0))
		return 0;
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
	flow->flags |= FLOW_OPENED | FLOW_MIDSTREAM | position.flags;
	for (int i = 0; i < 2; i++) {
		flow->passed[i] = position.passed[i];
		flow->origin[i] = position.sequence[i];
		flow->fin[i] = position.sequence[i];
	}
	opened = reserve_control(sizeof(*opened));
	if (!opened)
		return 0;
	describe_opened(opened, flow);
	read_addresses(opened, sk);
	bpf_ringbuf_submit(opened, 0);
	return 0;
}

SEC("iter/task_file")
int adopt_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	return adopt(sk, task);
}

/* Optional: a descriptor that came over a Unix socket is marked when it is first used. */
SEC("tp_btf/sock_send_length")
int socket_sent(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (sk->sk_protocol != PROTOCOL_TCP || bpf_sk_storage_get(&flows, sk, 0, 0))
		return 0;
	return adopt(sk, (struct task_struct *)bpf_get_current_task());
}

SEC("tp_btf/sock_recv_length")
int socket_received(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (sk->sk_protocol != PROTOCOL_TCP || bpf_sk_storage_get(&flows, sk, 0, 0))
		return 0;
	return adopt(sk, (struct task_struct *)bpf_get_current_task());
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

/* ---- STREAM layer ------------------------------------------------------------------------- */

struct ipv4_header {
	__u8 version_length;
	__u8 service;
	__u16 total_length;
	__u16 identification;
	__u16 fragment;
	__u8 lifetime;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct ipv6_header {
	__u32 version_class;
	__u16 payload_length;
	__u8 next;
	__u8 hops;
	__u8 source[16];
	__u8 destination[16];
};

struct tcp_header {
	__u16 source;
	__u16 destination;
	__u32 sequence;
	__u32 acknowledgment;
	__u8 offset;
	__u8 flags;
	__u16 window;
	__u16 checksum;
	__u16 urgent;
};

/* Offset of the TCP header in a packet that begins with its IP header, or 0. */
static __always_inline __u32 find_tcp(struct __sk_buff *skb)
{
	__u8 version = 0;

	if (bpf_skb_load_bytes(skb, 0, &version, 1))
		return 0;
	if (version >> 4 == 4) {
		__u8 protocol = 0;

		if (bpf_skb_load_bytes(skb, 9, &protocol, 1) || protocol != PROTOCOL_TCP)
			return 0;
		return (version & 15) * 4;
	}
	if (version >> 4 == 6) {
		__u32 offset = sizeof(struct ipv6_header);
		__u8 next = 0, extension[2];

		if (bpf_skb_load_bytes(skb, 6, &next, 1))
			return 0;
		for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
			if (next == PROTOCOL_TCP)
				return offset;
			if (bpf_skb_load_bytes(skb, offset, extension, 2))
				return 0;
			switch (next) {
			case 0:	  /* hop by hop */
			case 43:  /* routing */
			case 60:  /* destination options */
			case 135: /* mobility */
				offset += (extension[1] + 1) * 8;
				break;
			case 44: /* fragment */
				offset += 8;
				break;
			case 51: /* authentication */
				offset += (extension[1] + 2) * 4;
				break;
			default:
				return 0;
			}
			next = extension[0];
		}
	}
	return 0;
}

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

#ifdef STREAMTAP_SCRATCH
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

enum { PIECE_BYTES = 16384 }; /* a power of two: the verifier bounds the length by a mask */

static __noinline int put(struct __sk_buff *skb, struct segment_record *record,
			  struct orphan_tuple *tuple, __u32 offset, __u64 flags)
{
	__u32 left = record->captured, done = 0, total = record->length;
	struct scratch *scratch = 0;
	int result = 0;

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
	for (int i = 0; i < 33; i++) {
		__u32 piece = left > PIECE_BYTES - 1 ? PIECE_BYTES - 1 : left;
		__u32 head = sizeof(*record);

		if (tuple) {
			__builtin_memcpy(scratch->payload, tuple, sizeof(*tuple));
			head += sizeof(*tuple);
		}
		asm volatile("" : "+r"(piece));
		piece &= PIECE_BYTES - 1;
		scratch->record.sequence = record->sequence + done;
		scratch->record.captured = piece;
		/* The last piece also stands for what the policy left out. */
		scratch->record.length = left == piece ? total - done : piece;
		if (piece && bpf_skb_load_bytes(skb, offset + done,
						scratch->payload + head - sizeof(*record), piece)) {
			result = -1;
			break;
		}
		if (bpf_ringbuf_output(&segments, &scratch->record, head + piece, flags)) {
			result = -1;
			break;
		}
		done += piece;
		left -= piece;
		if (!left)
			break;
	}
	record->captured = done; /* what was kept before the ring was full */
	__sync_lock_test_and_set(&scratch->busy, 0);
	return result;
}
#else
static __noinline int put(struct __sk_buff *skb, struct segment_record *record,
			  struct orphan_tuple *tuple, __u32 offset, __u64 flags)
{
	__u32 head = sizeof(*record), length = record->captured, done = 0, failed = 0;
	struct bpf_dynptr to;

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
	/* Slices of constant size, chosen by the bits of the length: exact, and the verifier agrees. */
#define SLICE(size)                                                                \
	if (length & (size)) {                                                     \
		void *slice = bpf_dynptr_data(&to, head + done, size);             \
		if (!slice || bpf_skb_load_bytes(skb, offset + done, slice, size)) \
			failed = 1;                                                \
		done += (size);                                                    \
	}
	SLICE(262144)
	SLICE(131072)
	SLICE(65536)
	SLICE(32768)
	SLICE(16384)
	SLICE(8192)
	SLICE(4096)
	SLICE(2048)
	SLICE(1024)
	SLICE(512)
	SLICE(256)
	SLICE(128)
	SLICE(64)
	SLICE(32)
	SLICE(16)
	SLICE(8)
	SLICE(4)
	SLICE(2)
	SLICE(1)
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

/* Candidates cost a lookup until user space has decided; -1: this flow is not in scope. */
static __always_inline int settle(struct flow *flow)
{
	__u64 *decided = bpf_map_lookup_elem(&verdicts, &flow->process_id);

	if (!decided)
		return 0;
	flow->filters |= *decided & flow->candidates;
	flow->candidates = 0;
	return flow->filters ? 0 : -1;
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

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	flow = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (likely(!flow))
		return 1;
	set = the_settings();
	count = the_counters();
	if (!set || !count)
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
			flow->flags |= FLOW_SYN_SENT;
		}
	}
	if (tcp.flags & TCP_RST)
		flow->flags |= FLOW_RESET;
	if (tcp.flags & TCP_FIN) {
		flow->fin[direction] = record.sequence + length;
		flow->flags |= direction == DIRECTION_SENT ? FLOW_FIN_SENT : FLOW_FIN_RECEIVED;
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
	count->segments++;
	count->seen_bytes += length;

	if (sk->state == STATE_LISTEN) {
		failed = tell_orphan(skb, flow, &record, offset + head, flags);
		count->captured_bytes += record.captured;
		if (failed) {
			count->lost_segments++;
			count->lost_bytes += length - record.captured;
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
		count->counted_bytes += length;
		if (lost) {
			ADD(flow->lost_segments[direction], 1);
			count->lost_segments++;
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
		count->lost_segments++;
		count->lost_bytes += length - record.captured;
	} else if (record.captured < length) {
		ADD(flow->counted[direction], length - record.captured);
		count->counted_bytes += length - record.captured;
	}
	ADD(flow->captured[direction], record.captured);
	count->captured_bytes += record.captured;
	return 1;
}

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
