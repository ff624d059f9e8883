/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Where TCP begins in a packet. */
#ifndef STREAMTAP_PACKET_H
#define STREAMTAP_PACKET_H

#include "state.h"

enum { MAX_EXTENSION_HEADERS = 8 };

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

#endif
