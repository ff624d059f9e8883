/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every struct and enum that crosses between the callouts and Python; src/streamtap/capture/layout.py
 * mirrors it and a test compares the two through BTF. Fields are in host byte order unless the
 * comment says otherwise; times are CLOCK_MONOTONIC nanoseconds; lengths are bytes.
 */
#ifndef STREAMTAP_CALLOUT_H
#define STREAMTAP_CALLOUT_H

#define STREAMTAP_ABI	 2
#define COMM_LENGTH	 16
#define NAME_LENGTH	 64   /* key of the `names` map: file name without folder, zero padded */
#define PATH_LENGTH	 2048 /* path components, leaf first, each ended by a zero byte */
#define FILENAME_LENGTH	 512  /* as passed to execve, ended by a zero byte */
#define ARGUMENTS_LENGTH 2048 /* the argument vector, each ended by a zero byte, cut at the end */
#define COMPONENT_LENGTH 256  /* longest file name (NAME_MAX) and its zero byte */

enum record_kind {
	RECORD_SEGMENT = 1, /* segment_record, then `captured` bytes of payload */
	RECORD_ORPHAN = 2,  /* segment_record, orphan_tuple, then payload: came with a listener */
	RECORD_OPENED = 3,
	RECORD_CLOSED = 4,
	RECORD_OWNER = 5, /* process_record: first socket of a process that is in scope */
	RECORD_EXEC = 6,  /* process_record: a candidate, user space decides */
};

enum direction {
	DIRECTION_SENT = 0,
	DIRECTION_RECEIVED = 1,
};

enum policy_mode {
	POLICY_FULL = 0,
	POLICY_HEAD = 1,
	POLICY_COUNT = 2,
};

enum scope_use { /* bits of settings.use: which kinds of filter exist */
		 USE_COMM = 1,
		 USE_UID = 2,
		 USE_CGROUP = 4,
};

enum flow_flag {
	FLOW_ACTIVE = 1,    /* this end made the connection */
	FLOW_MIDSTREAM = 2, /* open before it was marked */
	FLOW_OPENED = 4,    /* opened_record was given */
	FLOW_MULTIPATH = 8, /* subflow of an MPTCP connection */
	FLOW_SYN_SENT = 16, /* origin[DIRECTION_SENT] is known from a SYN */
	FLOW_FIN_SENT = 32, /* fin[DIRECTION_SENT] is set */
	FLOW_FIN_RECEIVED = 64,
	FLOW_RESET = 128,  /* a RST was seen */
	FLOW_CLOSED = 256, /* closed_record was given */
};

enum process_flag {
	PROCESS_ANNOUNCED = 1, /* owner record was given */
	PROCESS_EXISTING = 2,  /* running before the callouts; no arguments in the record */
	PROCESS_SCRIPT = 4,    /* started through #! */
};

struct segment_record {
	unsigned long long flow_id; /* socket cookie */
	unsigned long long time_ns;
	unsigned int sequence;	     /* of the first payload byte */
	unsigned int acknowledgment; /* from the same header */
	unsigned int length;	     /* payload bytes that passed */
	unsigned int captured;	     /* of these, bytes that follow */
	unsigned int lost;	     /* segments of this direction not kept so far */
	unsigned short tcp_flags;    /* byte 13 of the TCP header */
	unsigned char kind;	     /* enum record_kind */
	unsigned char direction;     /* enum direction */
};

struct orphan_tuple {
	unsigned long long space; /* network namespace cookie */
	unsigned char local[16];  /* network order; IPv4 in the first four */
	unsigned char remote[16];
	unsigned short local_port;
	unsigned short remote_port;
	unsigned char family; /* 4 or 6 */
	unsigned char reserved[3];
};

struct opened_record {
	unsigned long long flow_id;
	unsigned long long time_ns;
	unsigned long long space;      /* network namespace cookie */
	unsigned long long process_id; /* matches process_record.process_id */
	unsigned long long filters;    /* bit i: filter i matched */
	unsigned long long candidates; /* bit i: filter i is still to be decided */
	unsigned long long cgroup_id;
	unsigned long long passed[2]; /* payload bytes before it was marked, by direction */
	unsigned int sequence[2];     /* of the next payload byte, by direction */
	unsigned int pid;
	unsigned int uid;
	unsigned int flags; /* enum flow_flag */
	unsigned short local_port;
	unsigned short remote_port;
	unsigned char local[16];
	unsigned char remote[16];
	char comm[COMM_LENGTH];
	unsigned char family; /* 4 or 6 */
	unsigned char kind;
	unsigned char reserved[6];
};

struct closed_record {
	unsigned long long flow_id;
	unsigned long long time_ns;
	unsigned long long bytes_acked; /* tcp_sock counters, SYN and FIN included */
	unsigned long long bytes_received;
	unsigned long long seen[2];	/* payload bytes that passed the hook, by direction */
	unsigned long long captured[2]; /* of these: copied to the ring */
	unsigned long long lost[2];	/* of these: not kept, the ring was full */
	unsigned long long counted[2];	/* of these: not copied, by policy */
	unsigned int range_sequence[2]; /* counted range not yet given, by direction */
	unsigned int range_length[2];
	unsigned int origin[2]; /* sequence of the first payload byte */
	unsigned int fin[2];	/* sequence of the FIN */
	unsigned int lost_segments[2];
	unsigned int snd_una;
	unsigned int snd_nxt;
	unsigned int rcv_nxt;
	unsigned int flags; /* enum flow_flag */
	unsigned char kind;
	unsigned char old_state;
	unsigned char reserved[6];
};

struct process_record {
	unsigned long long process_id;
	unsigned long long time_ns;
	unsigned long long inode;
	unsigned long long candidates;
	unsigned int device; /* superblock device, (major << 20) | minor */
	unsigned int pid;
	unsigned int uid;
	unsigned int flags; /* enum process_flag */
	unsigned int path_length;
	unsigned int filename_length;
	unsigned int arguments_length;
	unsigned int reserved_word;
	char comm[COMM_LENGTH];
	unsigned char kind;
	unsigned char reserved[7];
	char path[PATH_LENGTH + COMPONENT_LENGTH];
	char filename[FILENAME_LENGTH];
	char arguments[ARGUMENTS_LENGTH];
};

struct app_key { /* key of `apps`: an executable file, held open by user space */
	unsigned long long inode;
	unsigned int device;
	unsigned int reserved;
};

struct process { /* value of `processes`, by pid */
	unsigned long long process_id;
	unsigned long long executable; /* filters that its program matches */
	unsigned long long inherited;  /* filters it has from its parent, through exec too */
	unsigned long long own;	       /* filters that name this very pid */
	unsigned long long candidates;
	unsigned long long scripts; /* filters whose script it may be running */
	unsigned int flags;
	unsigned int reserved;
};

struct policy {		   /* value of `policies`, by flow_id */
	unsigned int mode; /* enum policy_mode */
	unsigned int head; /* bytes of each direction to copy with POLICY_HEAD */
};

struct settings {		     /* the one value of `settings`, mapped by user space */
	unsigned long long enabled;  /* bit i: filter i is in force */
	unsigned long long ask;	     /* filters that every exec is a candidate for */
	unsigned long long wake_ns;  /* a record wakes the reader if none did for so long */
	unsigned long long woken_ns; /* when the reader was last woken; written by the callouts */
	unsigned long long known;    /* filters that exist, in force or not */
	unsigned long long seeding;  /* filters that programs which run already are judged for */
	unsigned long long build;    /* of the object that was attached last; user space's own */
	unsigned long long
		missed;	  /* counters.lost_bytes that a reader has told; user space's own */
	unsigned int use; /* enum scope_use */
	unsigned int policy_epoch; /* changed whenever `policies` changes */
	unsigned int ring_bytes;
	unsigned int wake_bytes; /* a fuller ring wakes the reader at once */
	unsigned int mode;	 /* of new flows, enum policy_mode */
	unsigned int head;
	unsigned int new_only; /* leave out connections that are open already */
	unsigned int abi;      /* STREAMTAP_ABI */
	unsigned int tracked;  /* some process was found to be in scope by its program or pid */
	unsigned int
		marked; /* some socket was marked: until then the packet hooks return at once */
	unsigned int paused; /* nobody reads: payload is counted as lost, not copied */
	unsigned int reserved;
};

enum counted { /* keys of `counters` */
	       COUNTED_IN_SCOPE = 0,
	       COUNTED_CANDIDATES =
		       1, /* may turn out to be somebody else's: their loss is none of ours */
};

struct counters { /* per CPU */
	unsigned long long segments;
	unsigned long long seen_bytes;
	unsigned long long captured_bytes;
	unsigned long long counted_bytes;
	unsigned long long lost_segments;
	unsigned long long lost_bytes;
	unsigned long long control_lost;
	unsigned long long marks_lost; /* sockets in scope that could not be marked */
};

struct flow_listing { /* one row of the `list_flows` iterator */
	struct opened_record opened;
	unsigned long long seen[2];
	unsigned long long captured[2];
	unsigned long long lost[2];
	unsigned long long totals[2];	/* payload bytes by the kernel's counters, by direction */
	unsigned int range_sequence[2]; /* counted range not yet given, by direction */
	unsigned int range_length[2];
	unsigned int lost_segments[2];
	unsigned int state;
	unsigned int mode;
};

#endif
