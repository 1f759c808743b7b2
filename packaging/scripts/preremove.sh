#!/bin/sh
# Stops the units before their program is removed; an update leaves them running. Debian calls it with "remove", RPM with 0.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl --no-reload disable --now divert-firewall.service || true
	systemctl --no-reload stop 'divert@*.service' || true
fi
