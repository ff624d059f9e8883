/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who a process is, and which filters it is in: decided at exec, kept per process. */
#ifndef STREAMTAP_IDENTITY_H
#define STREAMTAP_IDENTITY_H

#include "state.h"

enum {
	MAX_PATH_DEPTH = 40,   /* folders and mounts; what lies deeper has a path cut at the root */
	MAX_CGROUP_DEPTH = 16, /* levels below the root that a scope by cgroup can name */
};

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
		position = forgotten(position + length) & (PATH_LENGTH * 2 - 1);
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
		struct counters *count = the_counters(COUNTED_IN_SCOPE);

		if (count)
			ADD(count->control_lost, 1);
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

static __always_inline long track(__u32 tgid, struct process *process, __u64 flags)
{
	struct settings *set = the_settings();

	if (set)
		set->tracked = 1;
	return bpf_map_update_elem(&processes, &tgid, process, flags);
}

/*
 * Whether the current process can be in scope at all: what most calls on a machine cost, so the
 * cheapest question comes first.
 */
static __always_inline int may_be_in_scope(void)
{
	struct settings *set = the_settings();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!set)
		return 0;
	return set->use || (set->tracked && bpf_map_lookup_elem(&processes, &tgid));
}

/* A verdict that came meanwhile becomes part of what is known of the process. */
static __always_inline void settle_process(struct process *process)
{
	__u64 *decided;

	if (!process->candidates)
		return;
	decided = bpf_map_lookup_elem(&verdicts, &process->process_id);
	if (decided) {
		process->executable |= *decided;
		process->candidates = 0;
	}
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
		settle_process(process);
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
		set->marked = 1;
	}
	return 0;
}

#endif
