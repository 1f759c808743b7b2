#!/bin/sh
# Makes the user that the units run as. It starts nothing: the administrator must first configure the units. Debian calls it
# with "configure" (and with other words in cases that need no action), RPM with a number.
set -e
case "$1" in
configure | [0-9]*) ;;
*) exit 0 ;;
esac
if ! getent passwd divert >/dev/null; then
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers divert.conf
	else
		useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin --comment "Divert" divert
	fi
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
