/* SPDX-License-Identifier: MIT */
/* What the load generators share: sockets on loopback, clocks, messages, and one line of result. */
#ifndef LOAD_H
#define LOAD_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000ull

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * BILLION + now.tv_nsec;
}

static inline struct sockaddr_in loopback(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	address.sin_port = htons(port);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static inline void at_once(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static inline int connect_to(int port)
{
	struct sockaddr_in address = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	at_once(fd);
	return fd;
}

/* Listens on a free port and prints it: whoever started us waits for that line. */
static inline int listen_and_tell(void)
{
	struct sockaddr_in address = loopback(0);
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1024) ||
	    getsockname(fd, (struct sockaddr *)&address, &length))
		die("listen");
	printf("{\"port\": %d}\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

struct message {
	char *data;
	size_t length;
};

/* The content of a file; without one, `length` bytes that no text protocol begins with. */
static inline struct message message_from(const char *path, size_t length)
{
	struct message message = {malloc(length + 65536), length};

	memset(message.data, 0xE7, length);
	if (path) {
		FILE *file = fopen(path, "rb");

		if (!file)
			die(path);
		message.length = fread(message.data, 1, 65536, file);
		fclose(file);
	}
	return message;
}

#endif
