/*
 * sockets.c performs the operations of the layer SOCKET, on a port of loopback, step by step. It prints the error of a
 * failed step, goes on, and stays until the standard input ends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void step(const char *name, int result)
{
    if (result < 0)
        printf("%s: %s\n", name, strerror(errno));
}

int main(int argc, char **argv)
{
    struct timeval patience = {10, 0};
    struct sockaddr_in addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), child, yes = 1;

    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    addr.sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    step("bind", bind(listener, (struct sockaddr *)&addr, sizeof(addr)));
    step("listen", listen(listener, 1));
    step("connect", connect(client, (struct sockaddr *)&addr, sizeof(addr)));
    step("accept", child = accept(listener, NULL, NULL));
    close(client);
    if (child >= 0)
        close(child);
    close(listener);
    printf("done\n");
    fflush(stdout);
    return getchar() != EOF;
}
