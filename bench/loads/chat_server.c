/* SPDX-License-Identifier: MIT */
/*
 * Answers each message with one of its own: chat_server HEAR [SAY [FIRST_HEAR FIRST_SAY]]. HEAR
 * and FIRST_HEAR are lengths, SAY and FIRST_SAY files; the first message of a connection may
 * differ from the others.
 */
#include <sys/epoll.h>
#include "load.h"

enum { CONNECTIONS = 4096, EVENTS = 256 };

static size_t heard[CONNECTIONS];
static char spoke[CONNECTIONS];
static char buffer[64 << 10];

int main(int argc, char **argv)
{
	size_t hear = argc > 1 ? atol(argv[1]) : 100;
	struct message say = message_from(argc > 2 ? argv[2] : 0, hear);
	size_t first_hear = argc > 4 ? (size_t)atol(argv[3]) : hear;
	struct message first = argc > 4 ? message_from(argv[4], 0) : say;
	struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
	int epoll = epoll_create1(0), listener = listen_and_tell();

	event.data.fd = listener;
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int count = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (fd == listener) {
				fd = accept(listener, 0, 0);
				if (fd < 0 || fd >= CONNECTIONS)
					die("accept");
				at_once(fd);
				heard[fd] = spoke[fd] = 0;
				event.data.fd = fd;
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			ssize_t length = read(fd, buffer, sizeof(buffer));

			if (length <= 0) {
				close(fd);
				continue;
			}
			heard[fd] += length;
			while (heard[fd] >= (spoke[fd] ? hear : first_hear)) {
				struct message *answer = spoke[fd] ? &say : &first;

				heard[fd] -= spoke[fd] ? hear : first_hear;
				spoke[fd] = 1;
				if (write(fd, answer->data, answer->length) < 0 && errno != EPIPE &&
				    errno != ECONNRESET)
					die("write");
			}
		}
	}
}
