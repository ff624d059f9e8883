/* SPDX-License-Identifier: MIT */
/*
 * Talks on many connections at once, each waiting for the answer before it speaks again:
 * chat_client PORT CONNECTIONS SECONDS RATE HEAR [SAY [FIRST_HEAR FIRST_SAY]]
 * RATE: round trips a second over all connections; 0 for as many as go. Words as in chat_server.
 * Latency counts from the moment at which a message was due, so that a stall is not hidden.
 */
#include <sys/epoll.h>
#include <sys/syscall.h>
#include "load.h"

enum {
	CONNECTIONS = 1024,
	EVENTS = 256,
	PAUSE_NS = 200000, /* the shortest sleep: a timer costs more than a few messages */
	STEPS = 64,	   /* of the histogram, in each power of two */
};

static struct {
	int fd;
	size_t heard;
	uint64_t due;
	int spoke;
} peers[CONNECTIONS];
static int idle[CONNECTIONS], idle_count;
static uint64_t histogram[64 * STEPS];
static char buffer[64 << 10];

static unsigned int step_of(uint64_t ns)
{
	if (ns < STEPS)
		return ns;
	unsigned int power = 63 - __builtin_clzll(ns);

	return (power - 5) * STEPS + (ns >> (power - 6)) - STEPS;
}

static double start_of(unsigned int step)
{
	if (step < STEPS)
		return step;
	return (double)(STEPS + step % STEPS) * (1ull << (step / STEPS - 1));
}

static double percentile(uint64_t total, double share)
{
	uint64_t left = total * share;

	for (unsigned int step = 0; step < 64 * STEPS; step++) {
		if (histogram[step] > left)
			return start_of(step);
		left -= histogram[step];
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 6)
		return 2;
	int port = atoi(argv[1]), connections = atoi(argv[2]);
	uint64_t seconds_ns = atof(argv[3]) * BILLION, trips = 0, started = 0, waiting = 0;
	double rate = atof(argv[4]);
	size_t hear = atol(argv[5]);
	struct message say = message_from(argc > 6 ? argv[6] : 0, hear);
	size_t first_hear = argc > 8 ? (size_t)atol(argv[7]) : hear;
	struct message first = argc > 8 ? message_from(argv[8], 0) : say;
	struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
	int epoll = epoll_create1(0);

	if (connections > CONNECTIONS)
		return 2;
	for (int i = 0; i < connections; i++) {
		peers[i].fd = connect_to(port);
		event.data.u32 = i;
		epoll_ctl(epoll, EPOLL_CTL_ADD, peers[i].fd, &event);
		idle[idle_count++] = i;
	}
	uint64_t begin = now_ns(), now = begin, last = begin;

	while ((now = now_ns()) - begin < seconds_ns || (waiting && now - last < BILLION)) {
		struct timespec pause = {0, PAUSE_NS};
		int open = now - begin < seconds_ns, sending = 0;

		while (open && idle_count) {
			uint64_t due = rate > 0 ? begin + started / rate * BILLION : now;

			if (due > now) {
				if (due - now > PAUSE_NS)
					pause.tv_nsec =
						due - now < BILLION ? due - now : BILLION - 1;
				sending = 1;
				break;
			}
			/* The one that has been idle longest, so that all of them speak. */
			int i = idle[0];
			struct message *words = peers[i].spoke ? &say : &first;

			memmove(idle, idle + 1, --idle_count * sizeof(*idle));
			peers[i].due = due;
			if (write(peers[i].fd, words->data, words->length) !=
			    (ssize_t)words->length)
				die("write");
			started++;
			waiting++;
		}
		if (!sending)
			pause = (struct timespec){0, 100000000};
		int count = syscall(SYS_epoll_pwait2, epoll, events, EVENTS, &pause, 0, 0);

		for (int at = 0; at < count; at++) {
			int i = events[at].data.u32;
			ssize_t length = read(peers[i].fd, buffer, sizeof(buffer));

			if (length <= 0)
				die("read");
			peers[i].heard += length;
			if (peers[i].heard < (peers[i].spoke ? hear : first_hear))
				continue;
			peers[i].heard = 0;
			peers[i].spoke = 1;
			last = now_ns();
			histogram[step_of(last - peers[i].due)]++;
			trips++;
			waiting--;
			idle[idle_count++] = i;
		}
	}
	printf("{\"trips\": %llu, \"seconds\": %.6f, \"sent\": %llu, \"p50_us\": %.1f, "
	       "\"p99_us\": %.1f, \"unanswered\": %llu}\n",
	       (unsigned long long)trips, (last - begin) / 1e9, (unsigned long long)started,
	       percentile(trips, 0.5) / 1e3, percentile(trips, 0.99) / 1e3,
	       (unsigned long long)waiting);
	return 0;
}
