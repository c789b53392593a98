<#
.SYNOPSIS
    Registers refit-agent as this user's scheduled task, and starts it.
.DESCRIPTION
    The task starts 'refit-agent serve' when this user logs on, without a window and without administrator's rights:
    at once if it was missed, again within ten minutes if it ended, on battery too (the service itself decides what
    to do then), never twice, and without a limit of time.

    There is one such task per user, whichever app brought the agent. If there is one already that runs an agent as
    new or newer from another folder, it stays as it is; an older one is replaced. Once more does no harm.
.PARAMETER Folder
    The agent's folder, with refit-agent.exe in it. By default the folder above that of this script.
.PARAMETER WaitSeconds
    How long to wait until the service answers; 0 does not wait.
.EXAMPLE
    powershell.exe -NoProfile -ExecutionPolicy Bypass -File Register-RefitAgent.ps1 -Folder "$env:LOCALAPPDATA\Programs\Photo\refit-agent"
.OUTPUTS
    Exit codes: 0 done, 1 it could not be registered, 2 a wrong folder or user, 8 registered, but it does not answer.
.NOTES
    For Windows PowerShell 5.1 and later. Parsed by the tests; not run on Windows yet.
#>
[CmdletBinding()]
param(
    [ValidateNotNullOrEmpty()]
    [string] $Folder = (Split-Path -Parent $PSScriptRoot),

    [ValidateRange(0, 600)]
    [int] $WaitSeconds = 30
)
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

function New-RefitAgentTaskDefinition {
    <#
    .SYNOPSIS
        The scheduled task for the agent in a folder, as an object; registers nothing.
    #>
    [CmdletBinding()]
    [Diagnostics.CodeAnalysis.SuppressMessageAttribute('PSUseShouldProcessForStateChangingFunctions', '', Justification = 'Makes an object in memory.')]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Root,
        [Parameter(Mandatory = $true)]
        [System.Security.Principal.WindowsIdentity] $User
    )
    # pythonw.exe, not refit-agent.exe: a program of the console kind would show a window for as long as it runs.
    # The folder's ._pth file isolates this Python, so no module of the user's own can get in the way.
    $python = Join-Path $Root 'python\pythonw.exe'
    $action = New-ScheduledTaskAction -Execute "`"$python`"" -Argument '-B -m refit_agent serve' -WorkingDirectory $Root
    # With the user's name: without it the task would be for everybody, which only administrators may register.
    $trigger = New-ScheduledTaskTrigger -AtLogOn -User $User.Name
    # Task Scheduler's own restart is for tasks that could not be started; one that ended is started by repetition,
    # and while it runs IgnoreNew drops the repetition.
    $repeated = New-ScheduledTaskTrigger -Once -At (Get-Date) -RepetitionInterval (New-TimeSpan -Minutes 10)
    $trigger.Repetition = $repeated.Repetition
    $principal = New-ScheduledTaskPrincipal -UserId $User.Name -LogonType Interactive -RunLevel Limited
    $options = @{
        MultipleInstances          = 'IgnoreNew'
        ExecutionTimeLimit         = [TimeSpan]::Zero
        RestartCount               = 3
        RestartInterval            = New-TimeSpan -Minutes 1
        AllowStartIfOnBatteries    = $true
        DontStopIfGoingOnBatteries = $true
        StartWhenAvailable         = $true
        # 7, the default, would make look-ups wait for whatever else runs; workers step back by themselves.
        Priority                   = 5
    }
    $settings = New-ScheduledTaskSettingsSet @options
    $about = "Keeps this user's TensorRT engines ready. Removed by Unregister-RefitAgent.ps1 in $Root\windows."
    New-ScheduledTask -Action $action -Trigger $trigger -Principal $principal -Settings $settings -Description $about
}

function Test-RefitAgentAnswer {
    <#
    .SYNOPSIS
        Whether the service answers within so many seconds.
    #>
    [CmdletBinding()]
    [OutputType([bool])]
    param(
        [Parameter(Mandatory = $true)]
        [string] $Root,
        [Parameter(Mandatory = $true)]
        [int] $Seconds
    )
    $until = (Get-Date).AddSeconds($Seconds)
    do {
        if ((Invoke-RefitAgent -Folder $Root -ArgumentList 'status', '--json') -eq 0) {
            return $true
        }
        Start-Sleep -Milliseconds 500
    } while ((Get-Date) -lt $until)
    $false
}

try {
    Import-Module (Join-Path $PSScriptRoot 'RefitAgent.psm1') -Force
    $user = Get-RefitAgentUser
    $root = Resolve-RefitAgentFolder -Folder $Folder
}
catch {
    [Console]::Error.WriteLine("refit-agent: $_")
    exit 2
}

try {
    $present = Get-RefitAgentTask
    if ($present) {
        $other = Get-RefitAgentTaskFolder -Task $present
        # Of two apps with one version the first keeps it: the second's uninstall would take it away from both.
        $elsewhere = -not (Test-RefitAgentSameFolder -First $other -Second $root)
        if ($elsewhere -and (Get-RefitAgentVersion -Folder $other) -ge (Get-RefitAgentVersion -Folder $root)) {
            Write-Output "The agent in $other is as new or newer and stays this user's service."
            exit 0
        }
        Stop-RefitAgentProcess -Folder $other -Task $present -Confirm:$false
    }
    $definition = New-RefitAgentTaskDefinition -Root $root -User $user
    $task = Register-ScheduledTask -TaskPath '\' -TaskName (Get-RefitAgentTaskName) -InputObject $definition -Force
    Start-ScheduledTask -InputObject $task
}
catch {
    [Console]::Error.WriteLine("refit-agent: the scheduled task could not be registered: $_")
    exit 1
}

if ($WaitSeconds -gt 0 -and -not (Test-RefitAgentAnswer -Root $root -Seconds $WaitSeconds)) {
    [Console]::Error.WriteLine("refit-agent: the service is registered but does not answer; its log is in $env:LOCALAPPDATA\refit-agent\logs.")
    exit $ExitService
}
Write-Output 'The service is registered.'
exit 0
