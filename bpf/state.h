/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the callouts know: the flow context, and the maps. */
#ifndef STREAMTAP_STATE_H
#define STREAMTAP_STATE_H

#include <linux/bpf.h>
#include "kernel_types.h"
#include "helpers.h"
#include "callout.h"

/* As the kernel and TCP number them. */
enum {
	FAMILY_INET = 2,
	FAMILY_INET6 = 10,
	PROTOCOL_TCP = 6,
	TYPE_STREAM = 1,
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
	__uint(max_entries, 2);
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
	__uint(max_entries, 16 << 20); /* user space chooses at load */
} segments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 << 20);
} control SEC(".maps");

static __always_inline struct settings *the_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline struct counters *the_counters(enum counted of)
{
	__u32 key = of;

	return bpf_map_lookup_elem(&counters, &key);
}

/* Atomic also where a value is of one CPU: a packet hook may be interrupted by another. */
#define ADD(field, amount) __sync_fetch_and_add(&(field), amount)
#define SET(field, bits)   __sync_fetch_and_or(&(field), bits)

static __always_inline void copy_comm(char *to, struct task_struct *task)
{
	bpf_probe_read_kernel_str(to, COMM_LENGTH, &task->comm);
}

#endif
