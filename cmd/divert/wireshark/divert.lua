-- Shows the process of each packet that Divert captured as fields of Wireshark: divert.process, divert.pid and
-- divert.path. Divert writes them as a comment of the packet: curl[4711] /usr/bin/curl

local divert = Proto("divert", "Divert")
divert.fields.process = ProtoField.string("divert.process", "Program")
divert.fields.pid = ProtoField.uint32("divert.pid", "Process id")
divert.fields.path = ProtoField.string("divert.path", "Path of the program")

local comments = Field.new("frame.comment")

function divert.dissector(buffer, pinfo, tree)
	for _, comment in ipairs({ comments() }) do
		local name, pid, path = tostring(comment):match("^(.-)%[(%d+)%]%s?(.*)$")
		if name then
			local branch = tree:add(divert, buffer(0, 0), "Divert: " .. name .. ", process " .. pid)
			branch:add(divert.fields.process, name):set_generated()
			branch:add(divert.fields.pid, tonumber(pid)):set_generated()
			if path ~= "" then
				branch:add(divert.fields.path, path):set_generated()
			end
			return
		end
	end
end

register_postdissector(divert)
