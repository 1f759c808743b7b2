-- Shows the process of each packet that Divert captured as fields of Wireshark: divert.process, divert.pid and
-- divert.path, and what became of it as divert.verdict. Divert writes them as comments of the packet:
-- curl[4711] /usr/bin/curl
-- verdict: dropped

local divert = Proto("divert", "Divert")
divert.fields.process = ProtoField.string("divert.process", "Program")
divert.fields.pid = ProtoField.uint32("divert.pid", "Process id")
divert.fields.path = ProtoField.string("divert.path", "Path of the program")
divert.fields.verdict = ProtoField.string("divert.verdict", "Verdict")

local comments = Field.new("frame.comment")

function divert.dissector(buffer, pinfo, tree)
	local known = false
	for _, comment in ipairs({ comments() }) do
		local verdict = tostring(comment):match("^verdict: (%a+)$")
		local name, pid, path = tostring(comment):match("^(.-)%[(%d+)%]%s?(.*)$")
		if verdict then
			tree:add(divert, buffer(0, 0), "Divert: " .. verdict):add(divert.fields.verdict, verdict):set_generated()
		elseif name and not known then
			known = true
			local branch = tree:add(divert, buffer(0, 0), "Divert: " .. name .. ", process " .. pid)
			branch:add(divert.fields.process, name):set_generated()
			branch:add(divert.fields.pid, tonumber(pid)):set_generated()
			if path ~= "" then
				branch:add(divert.fields.path, path):set_generated()
			end
		end
	end
end

register_postdissector(divert)
