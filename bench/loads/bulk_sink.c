/* SPDX-License-Identifier: MIT */
/* The receiving end of a bulk flow: reads, one connection after the other, until it is ended. */
#include "load.h"

static char block[256 << 10];

int main(void)
{
	int listener = listen_and_tell();

	for (;;) {
		int fd = accept(listener, 0, 0);

		if (fd < 0)
			die("accept");
		while (read(fd, block, sizeof(block)) > 0)
			;
		close(fd);
	}
}
