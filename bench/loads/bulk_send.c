/* SPDX-License-Identifier: MIT */
/*
 * The sending end of a bulk flow: bulk_send PORT SECONDS BLOCK RATE. As fast as it goes, or RATE
 * bytes a second where that is not 0. The time ends when the other end has read everything.
 */
#include "load.h"

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	uint64_t seconds_ns = atof(argv[2]) * BILLION, sent = 0;
	size_t block = atol(argv[3]);
	double rate = atof(argv[4]);
	struct message message = message_from(0, block);
	int fd = connect_to(atoi(argv[1]));
	uint64_t begin = now_ns(), now;
	char end;

	while ((now = now_ns()) - begin < seconds_ns) {
		uint64_t due = rate > 0 ? begin + sent / rate * BILLION : 0;

		if (due > now) {
			struct timespec until = {due / BILLION, due % BILLION};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
		}
		for (size_t done = 0; done < block;) {
			ssize_t count = write(fd, message.data + done, block - done);

			if (count <= 0)
				die("write");
			done += count;
		}
		sent += block;
	}
	shutdown(fd, SHUT_WR);
	while (read(fd, &end, 1) > 0)
		;
	printf("{\"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent,
	       (now_ns() - begin) / 1e9);
	return 0;
}
