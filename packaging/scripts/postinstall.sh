#!/bin/sh
# Makes the user that the units run as. Nothing is started: what a unit does is for the administrator to write first.
# Debian calls it with "configure" (and with other words for what needs nothing), RPM with a number.
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
