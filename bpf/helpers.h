/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The BPF helpers, map attributes and CO-RE builtins that the callouts use. */
#ifndef STREAMTAP_HELPERS_H
#define STREAMTAP_HELPERS_H

#define SEC(name) __attribute__((section(name), used))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#undef __noinline
#define __noinline __attribute__((noinline))

/* Map attributes as libbpf reads them from BTF. */
#define __uint(name, value) int (*name)[value]
#define __type(name, value) __typeof__(value) *name

#define HELPER(result, name, ...) \
	static result (*const bpf_##name)(__VA_ARGS__) = (void *)BPF_FUNC_##name

HELPER(void *, map_lookup_elem, void *map, const void *key);
HELPER(long, map_update_elem, void *map, const void *key, const void *value, __u64 flags);
HELPER(long, map_delete_elem, void *map, const void *key);
HELPER(__u64, ktime_get_ns, void);
HELPER(__u64, get_current_pid_tgid, void);
HELPER(__u64, get_current_task, void);
HELPER(__u64, get_socket_cookie, void *context);
HELPER(__u64, get_netns_cookie, void *context);
HELPER(long, probe_read_kernel, void *to, __u32 length, const void *from);
HELPER(long, probe_read_kernel_str, void *to, __u32 length, const void *from);
HELPER(long, probe_read_user, void *to, __u32 length, const void *from);
HELPER(long, skb_load_bytes, const void *skb, __u32 offset, void *to, __u32 length);
HELPER(struct bpf_sock *, sk_fullsock, struct bpf_sock *sk);
HELPER(void *, sk_storage_get, void *map, void *sk, void *value, __u64 flags);
HELPER(long, sk_storage_delete, void *map, void *sk);
HELPER(struct tcp_sock *, skc_to_tcp_sock, void *sk);
HELPER(struct socket *, sock_from_file, struct file *file);
HELPER(long, ringbuf_output, void *ring, void *data, __u64 length, __u64 flags);
HELPER(void *, ringbuf_reserve, void *ring, __u64 length, __u64 flags);
HELPER(void, ringbuf_submit, void *data, __u64 flags);
HELPER(__u64, ringbuf_query, void *ring, __u64 flags);
HELPER(long, ringbuf_reserve_dynptr, void *ring, __u32 length, __u64 flags, struct bpf_dynptr *to);
HELPER(void, ringbuf_submit_dynptr, struct bpf_dynptr *from, __u64 flags);
HELPER(void, ringbuf_discard_dynptr, struct bpf_dynptr *from, __u64 flags);
HELPER(long, dynptr_write, struct bpf_dynptr *to, __u32 offset, void *from, __u32 length,
       __u64 flags);
HELPER(void *, dynptr_data, struct bpf_dynptr *from, __u32 offset, __u32 length);
HELPER(long, seq_write, struct seq_file *to, const void *data, __u32 length);

/* The value of a kernel field behind any pointer, trusted or not; zero where it cannot be read. */
#define READ(field)                                                       \
	({                                                                \
		__typeof__(field) value_ = 0;                             \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(field)); \
		value_;                                                   \
	})

/*
 * The number, of which the verifier knows nothing any more: what differs in it alone is one state,
 * so that a loop is not followed by each of its values.
 */
static __always_inline __u32 forgotten(__u32 number)
{
	return READ(number);
}

#define FIELD_EXISTS(field) __builtin_preserve_field_info(field, 2)

#define NETWORK16(x) __builtin_bswap16(x)
#define NETWORK32(x) __builtin_bswap32(x)
#define likely(x)    __builtin_expect(!!(x), 1)

#endif
