<#
.SYNOPSIS
    What the scripts beside this module share: the scheduled task of this user, and how refit-agent is started.
.NOTES
    For Windows PowerShell 5.1 and later. Parsed by the tests; not run on Windows yet.
#>
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

# Exit codes of refit-agent itself, see 'refit-agent --help'.
$script:ExitUsage = 2
$script:ExitService = 8

function Get-RefitAgentUser {
    <#
    .SYNOPSIS
        The user that this process runs as. Throws for SYSTEM and the like, which have no desktop and no profile of use.
    #>
    [CmdletBinding()]
    [OutputType([System.Security.Principal.WindowsIdentity])]
    param()
    $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
    # S-1-5-18, 19 and 20 are LocalSystem, LocalService and NetworkService: management tools often run as the first.
    if ($identity.User.Value -match '^S-1-5-(18|19|20)$') {
        throw "The service belongs to a user. Run this in the user's session, not as $($identity.Name)."
    }
    $identity
}

function Get-RefitAgentTaskName {
    <#
    .SYNOPSIS
        The name of this user's scheduled task. It holds the user's SID, since users share one list of tasks.
    #>
    [CmdletBinding()]
    [OutputType([string])]
    param()
    'Refit Agent ' + (Get-RefitAgentUser).User.Value
}

function Get-RefitAgentTask {
    <#
    .SYNOPSIS
        This user's scheduled task, or nothing.
    #>
    [CmdletBinding()]
    param()
    Get-ScheduledTask -TaskPath '\' -TaskName (Get-RefitAgentTaskName) -ErrorAction SilentlyContinue
}

function Get-RefitAgentTaskFolder {
    <#
    .SYNOPSIS
        The agent's folder that a scheduled task runs from: the one above that of pythonw.exe.
    #>
    [CmdletBinding()]
    [OutputType([string])]
    param(
        [Parameter(Mandatory = $true)]
        $Task
    )
    $program = @($Task.Actions)[0].Execute.Trim('"')
    Split-Path -Parent (Split-Path -Parent $program)
}

function Resolve-RefitAgentFolder {
    <#
    .SYNOPSIS
        The absolute path of the agent's folder. Throws if refit-agent.exe or its Python is not in it.
    #>
    [CmdletBinding()]
    [OutputType([string])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder
    )
    $full = (Resolve-Path -LiteralPath $Folder).ProviderPath.TrimEnd('\')
    foreach ($name in 'refit-agent.exe', 'python\python.exe', 'python\pythonw.exe') {
        if (-not (Test-Path -LiteralPath (Join-Path $full $name) -PathType Leaf)) {
            throw "$full is not the folder of refit-agent: it has no $name."
        }
    }
    $full
}

function Test-RefitAgentSameFolder {
    <#
    .SYNOPSIS
        Whether two paths name one folder, whatever their case and trailing backslash; neither has to exist.
    #>
    [CmdletBinding()]
    [OutputType([bool])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $First,
        [Parameter(Mandatory = $true)]
        [string] $Second
    )
    [System.IO.Path]::GetFullPath($First).TrimEnd('\') -eq [System.IO.Path]::GetFullPath($Second).TrimEnd('\')
}

function ConvertTo-RefitAgentArgument {
    <#
    .SYNOPSIS
        A string as one argument of a Windows command line: quoted, with the backslashes before a quote doubled.
    #>
    [CmdletBinding()]
    [OutputType([string])]
    param(
        [Parameter(Mandatory = $true)]
        [AllowEmptyString()]
        [string] $Text
    )
    if ($Text -ne '' -and $Text -notmatch '[\s"]') {
        return $Text
    }
    $escaped = $Text -replace '(\\*)"', '$1$1\"'
    $escaped = $escaped -replace '(\\+)$', '$1$1'
    '"' + $escaped + '"'
}

function Invoke-RefitAgent {
    <#
    .SYNOPSIS
        Runs refit-agent.exe without a window and hands each line of its standard output to a script block.
    .DESCRIPTION
        Gives the exit code. Standard error is that of this process. Blocks until the program has ended; if this
        pipeline is stopped before, the program is ended too.
    #>
    [CmdletBinding()]
    [OutputType([int])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder,
        [Parameter(Mandatory = $true)]
        [string[]] $ArgumentList,
        [scriptblock] $OnLine = { param($line) Write-Verbose $line }
    )
    $start = New-Object System.Diagnostics.ProcessStartInfo
    $start.FileName = Join-Path $Folder 'refit-agent.exe'
    $start.Arguments = @($ArgumentList | ForEach-Object { ConvertTo-RefitAgentArgument -Text $_ }) -join ' '
    $start.UseShellExecute = $false
    $start.CreateNoWindow = $true
    $start.RedirectStandardOutput = $true
    # What refit-agent writes there is ASCII, whatever the code page of the console.
    $start.StandardOutputEncoding = [System.Text.Encoding]::UTF8
    $process = New-Object System.Diagnostics.Process
    $process.StartInfo = $start
    [void] $process.Start()
    $ended = $false
    try {
        $line = $process.StandardOutput.ReadLine()
        while ($null -ne $line) {
            # Its output must not get between this function's own, which is the exit code.
            & $OnLine $line | Out-Null
            $line = $process.StandardOutput.ReadLine()
        }
        $process.WaitForExit()
        $ended = $true
        $process.ExitCode
    }
    finally {
        if (-not $ended -and -not $process.HasExited) {
            # Ctrl+C in PowerShell leads here. /T: refit-agent.exe starts Python as a child.
            & "$env:SystemRoot\System32\taskkill.exe" /F /T /PID $process.Id | Out-Null
        }
        $process.Dispose()
    }
}

function Get-RefitAgentVersion {
    <#
    .SYNOPSIS
        The version of the agent in a folder; 0.0 if it cannot say.
    #>
    [CmdletBinding()]
    [OutputType([version])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder
    )
    $said = New-Object System.Collections.ArrayList
    try {
        $code = Invoke-RefitAgent -Folder $Folder -ArgumentList '--version' -OnLine { param($line) [void] $said.Add($line) }
    }
    catch {
        Write-Verbose "The agent in $Folder cannot be started: $_"
        return [version] '0.0'
    }
    if ($code -eq 0 -and ($said -join ' ') -match '(\d+(\.\d+){1,3})') {
        return [version] $Matches[1]
    }
    [version] '0.0'
}

function Get-RefitAgentProcess {
    <#
    .SYNOPSIS
        The processes of this session whose program lies in the agent's folder: service, workers, commands.
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder
    )
    $root = [System.IO.Path]::GetFullPath($Folder).TrimEnd('\') + '\'
    foreach ($process in Get-Process) {
        $path = $null
        try {
            $path = $process.Path
        }
        catch {
            Write-Verbose "Process $($process.Id) does not tell its path."
        }
        if ($path -and $path.StartsWith($root, [System.StringComparison]::OrdinalIgnoreCase)) {
            $process
        }
    }
}

function Stop-RefitAgentProcess {
    <#
    .SYNOPSIS
        Ends what runs from the agent's folder, so that its files can be replaced or deleted.
    .DESCRIPTION
        Waits at most PatienceSeconds for the service to finish what apps wait for, then ends its task and whatever
        is left. Windows has no signal that a program without a window would hear, so the end is a hard one; nothing
        half-made is ever published, and a worker ends by itself when its parent is gone.
    #>
    [CmdletBinding(SupportsShouldProcess = $true)]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder,
        $Task,
        [ValidateRange(0, 3600)]
        [int] $PatienceSeconds = 20
    )
    if (-not $PSCmdlet.ShouldProcess($Folder, 'End the processes of refit-agent')) {
        return
    }
    if ($Task) {
        # First, or the task's repetition would start the service again.
        [void] (Disable-ScheduledTask -InputObject $Task)
    }
    $until = (Get-Date).AddSeconds($PatienceSeconds)
    while ((Get-Date) -lt $until -and (Test-RefitAgentBusy -Folder $Folder)) {
        Start-Sleep -Milliseconds 500
    }
    if ($Task) {
        Stop-ScheduledTask -InputObject $Task
    }
    $until = (Get-Date).AddSeconds(5)
    $left = @(Get-RefitAgentProcess -Folder $Folder)
    while ($left.Count -gt 0 -and (Get-Date) -lt $until) {
        Start-Sleep -Milliseconds 200
        $left = @(Get-RefitAgentProcess -Folder $Folder)
    }
    foreach ($process in $left) {
        # It may have ended in between.
        Stop-Process -Id $process.Id -Force -ErrorAction SilentlyContinue
    }
    foreach ($process in $left) {
        [void] $process.WaitForExit(5000)
    }
}

function Test-RefitAgentBusy {
    <#
    .SYNOPSIS
        Whether the service makes an engine for which an app waits. False if there is no service.
    #>
    [CmdletBinding()]
    [OutputType([bool])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Folder
    )
    $said = New-Object System.Collections.ArrayList
    try {
        $code = Invoke-RefitAgent -Folder $Folder -ArgumentList 'status', '--json' -OnLine { param($line) [void] $said.Add($line) }
        if ($code -ne 0) {
            return $false
        }
        $status = ($said -join "`n") | ConvertFrom-Json
        return @($status.jobs | Where-Object { -not $_.background }).Count -gt 0
    }
    catch {
        Write-Verbose "The service does not tell what it is doing: $_"
        return $false
    }
}

Export-ModuleMember -Function @(
    'Get-RefitAgentUser', 'Get-RefitAgentTaskName', 'Get-RefitAgentTask', 'Get-RefitAgentTaskFolder',
    'Resolve-RefitAgentFolder', 'Test-RefitAgentSameFolder', 'ConvertTo-RefitAgentArgument', 'Invoke-RefitAgent',
    'Get-RefitAgentVersion', 'Get-RefitAgentProcess', 'Stop-RefitAgentProcess', 'Test-RefitAgentBusy'
) -Variable 'ExitUsage', 'ExitService'
