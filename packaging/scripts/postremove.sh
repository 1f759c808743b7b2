#!/bin/sh
# Removes the configuration and the user when the package is purged (Debian). RPM keeps both.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -rf /etc/divert
	if getent passwd divert >/dev/null && command -v userdel >/dev/null; then
		userdel divert
	fi
fi
