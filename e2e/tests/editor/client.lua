-- What a person does in Neovim, by a plan in JSON: opens a file, looks, asks, renames. Written for Neovim 0.7 and later.
local plan = vim.fn.json_decode(table.concat(vim.fn.readfile(vim.env.GANTRY_PLAN), "\n"))
local report = { steps = {} }
local limit = 30000

local function finish()
  vim.fn.writefile({ vim.fn.json_encode(report) }, vim.env.GANTRY_REPORT)
  vim.cmd("qa!")
end

local function wait(what, condition)
  if not vim.wait(limit, condition, 20) then
    error("not in time: " .. what)
  end
end

local function run()
  vim.cmd("edit " .. vim.fn.fnameescape(plan.file))
  local buffer = vim.api.nvim_get_current_buf()
  local id = vim.lsp.start_client({ name = "gantry", cmd = plan.cmd, root_dir = plan.root })
  vim.lsp.buf_attach_client(buffer, id)
  wait("the server", function()
    local client = vim.lsp.get_client_by_id(id)
    return client and client.initialized
  end)

  local function ask(method, step, more)
    local params = { textDocument = { uri = vim.uri_from_bufnr(buffer) }, position = { line = step.line, character = step.column } }
    local answers = vim.lsp.buf_request_sync(buffer, method, vim.tbl_extend("force", params, more or {}), limit)
    local answer = answers and answers[id] or {}
    if answer.error then
      error(method .. ": " .. answer.error.message)
    end
    return answer.result
  end

  local doing = {
    -- What the editor shows beside the text, once there are so many findings.
    findings = function(step)
      wait(step.count .. " findings", function()
        return #vim.diagnostic.get(buffer) == step.count
      end)
      return vim.tbl_map(function(found)
        return { line = found.lnum, code = found.code or found.user_data.lsp.code, message = found.message }
      end, vim.diagnostic.get(buffer))
    end,
    hover = function(step)
      local found = ask("textDocument/hover", step)
      return found and found.contents.value
    end,
    completion = function(step)
      return vim.tbl_map(function(item)
        return item.label
      end, ask("textDocument/completion", step))
    end,
    -- Jumps, and says where it came to.
    definition = function(step)
      vim.lsp.util.jump_to_location(ask("textDocument/definition", step), "utf-16")
      local place = { file = vim.fn.expand("%:p"), line = vim.fn.getline("."), column = vim.fn.col(".") - 1 }
      vim.api.nvim_set_current_buf(buffer)
      return place
    end,
    rename = function(step)
      vim.lsp.util.apply_workspace_edit(ask("textDocument/rename", step, { newName = step.name }), "utf-16")
      return table.concat(vim.api.nvim_buf_get_lines(buffer, 0, -1, false), "\n")
    end,
    -- Somebody types: one line gets another text.
    type = function(step)
      vim.api.nvim_buf_set_lines(buffer, step.line, step.line + 1, false, step.lines)
    end,
  }
  for index, step in ipairs(plan.steps) do
    report.steps[index] = doing[step.what](step) or vim.NIL
  end
end

local ok, problem = pcall(run)
if not ok then
  report.error = tostring(problem)
end
finish()
